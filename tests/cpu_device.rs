//! The CPU device: every operation against the oracle, and the same bits whatever the number of threads.

mod common;

use common::ops::{KINDS, Setup};
use l2b::device::cpu::Cpu;
use l2b::device::{ConvShape, LossShape, PoolShape, Rows};

fn setups(test: impl Fn(&Setup<Cpu<f32>>), test64: impl Fn(&Setup<Cpu<f64>>)) {
    test(&Setup::new(&Cpu::new(Some(2)).expect("threads")));
    test64(&Setup::new(&Cpu::new(Some(2)).expect("threads")));
}

/// Runs one generic body on both element types.
macro_rules! both {
    ($setup:ident => $body:expr) => {
        setups(|$setup| $body, |$setup| $body)
    };
}

/// Odd sizes in every direction, each with output.
fn conv_shapes() -> Vec<ConvShape> {
    let mut shapes = Vec::new();
    let channels = [1, 3, 7];
    for n in [1, 5, 33] {
        for (h, w) in [(1, 1), (5, 7)] {
            for (r, s) in [(1, 1), (3, 3), (5, 5), (7, 7), (2, 2), (3, 1)] {
                for stride in [1, 2, 3] {
                    for pad in [0, 1, 3] {
                        let i = shapes.len();
                        let (c, k) = (channels[i % 3], channels[i / 3 % 3]);
                        if h + 2 * pad >= r && w + 2 * pad >= s {
                            shapes.push(ConvShape {
                                n,
                                h,
                                w,
                                c,
                                k,
                                r,
                                s,
                                stride,
                                pad,
                            });
                        }
                    }
                }
            }
        }
    }
    shapes
}

#[test]
fn convolution_over_odd_shapes() {
    both!(setup => for (i, shape) in conv_shapes().into_iter().enumerate() {
        setup.conv(shape, KINDS[i % 4]);
    });
}

/// Square filters at the sizes where the plan changes: around a tile of rows, a GEMM's register block, and past the
/// length of a piece of work.
#[test]
fn convolution_around_tiles() {
    let shape = |n, h, c, k, r, stride| ConvShape {
        n,
        h,
        w: h,
        c,
        k,
        r,
        s: r,
        stride,
        pad: r / 2,
    };
    let shapes = [
        shape(127, 1, 16, 17, 1, 1),
        shape(128, 1, 15, 16, 1, 1),
        shape(129, 1, 33, 10, 1, 1),
        shape(3, 8, 16, 16, 3, 1),
        shape(9, 8, 15, 31, 3, 1),
        shape(9, 8, 17, 32, 3, 2),
        shape(7, 2, 65, 63, 3, 1),
        shape(2, 17, 5, 8, 3, 1),
        shape(1, 40, 3, 9, 3, 1),
        shape(2, 33, 4, 6, 3, 2),
        shape(2, 18, 16, 20, 1, 2),
    ];
    both!(setup => for shape in shapes {
        for kind in KINDS {
            setup.conv(shape, kind);
        }
    });
}

#[test]
fn sources_and_joins() {
    both!(setup => for rows in [1, 5, 127, 128, 129, 1500] {
        for channels in [1, 3, 7, 64, 300] {
            setup.rows(Rows { rows, channels });
        }
    });
}

#[test]
fn pooling() {
    let sizes = [
        (1, 1, 1, 1),
        (5, 7, 5, 7),
        (5, 7, 2, 3),
        (8, 8, 8, 8),
        (4, 4, 2, 2),
    ];
    both!(setup => for n in [1, 5, 33] {
        for (i, (h, w, r, s)) in sizes.into_iter().enumerate() {
            for c in [1, 3, 7, 260] {
                setup.pool(PoolShape { n, h, w, c, r, s }, KINDS[(i + n as usize) % 4]);
            }
        }
    });
}

#[test]
fn norm_contraction() {
    both!(setup => for (samples, pixels) in [(1, 1), (5, 35), (33, 1), (3, 300)] {
        for channels in [1, 3, 7, 64] {
            setup.norm_contract(Rows { rows: (samples * pixels) as i32, channels }, samples);
        }
    });
}

#[test]
fn loss() {
    both!(setup => for entries in [1, 5, 33, 129] {
        for classes in [1, 2, 10, 101] {
            setup.loss(LossShape { entries, classes });
        }
    });
}

#[test]
fn weights() {
    both!(setup => for len in [1, 2, 66, 1000] {
        setup.weights(len);
    });
}

#[test]
fn optimizer() {
    both!(setup => for len in [1, 7, 16383, 16384, 16385, 100_000] {
        setup.optimizer(len);
    });
}
