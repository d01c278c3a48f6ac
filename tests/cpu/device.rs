//! The CPU device: every operation against the oracle, and the same bits whatever the number of threads.

mod rounding;

use crate::common::alone::every_operation_runs_alone;
use crate::common::loss::watching;
use crate::common::ops::{self, KINDS, POOLS, Setup, rows};
use crate::common::transfer;
use crate::common::{Arranged, Random, fetch, fetch_raw, raw, reading, room, writing};
use l2b::device::cpu::{Cpu, Rounding};
use l2b::device::{
    AugmentShape, Conv, ConvShape, Device, Epilogue, Geometry, LossShape, PoolShape, Region, Rows, Source,
    Statistics, Sums, Tangent, Write,
};

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
    both!(setup => for n in [1, 5, 33] {
        for (i, (h, w, r, s)) in POOLS.into_iter().enumerate() {
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
fn watching_and_transfers() {
    both!(setup => {
        watching(setup.device);
        let (arrived, sent) = transfer::pipeline(setup.device);
        assert_eq!(arrived, sent);
        transfer::refusals(setup.device);
    });
}

#[test]
fn optimizer() {
    both!(setup => for len in [1, 7, 16383, 16384, 16385, 100_000] {
        setup.optimizer(len);
    });
}

#[test]
fn augmentation() {
    both!(setup => for (n, h, w, c) in [(1, 1, 1, 1), (5, 5, 7, 3), (33, 8, 8, 1)] {
        for (pad, flip, view) in [(0, 0, 0), (2, 0, 1), (0, 1, 256), (4, 1, 65535)] {
            for gather in [0, 1] {
                setup.augment(AugmentShape { n, h, w, c, pad, flip, view, gather });
            }
        }
    });
}

#[test]
fn every_operation_of_a_step_runs_alone() {
    every_operation_runs_alone(&Cpu::<f32>::new(Some(1)).expect("threads"));
}

#[test]
fn adjoint_identities() {
    both!(setup => {
        for (i, shape) in conv_shapes().into_iter().enumerate() {
            if i % 5 == 0 {
                setup.conv_adjoint(shape);
            }
        }
        for rows in [2, 5, 129, 300] {
            for channels in [1, 3, 64] {
                for statistics in [Statistics::Batch { update: false }, Statistics::Running] {
                    setup.norm_adjoint(Rows { rows, channels }, statistics);
                }
            }
        }
        setup.pool_adjoint(PoolShape { n: 5, h: 5, w: 7, c: 3, r: 2, s: 3 });
    });
}

/// Bits of the results of one convolution, its epilogues and sums, of a join and of a norm.
fn bits(device: &Cpu<f32>, shape: ConvShape) -> Vec<Vec<u32>> {
    let random = &mut Random::new(5);
    let prepared = &device.prepare(&Geometry::Conv(shape)).expect("prepare");
    let scratch = room(device, prepared.scratch_bytes);
    let mut lend = |len| reading::<f32, _>(device, &random.values(len));
    let [x, tx, before] = [(); 3].map(|()| lend(shape.x_len()));
    let [w, tw] = [(); 2].map(|()| Arranged::new(device, &shape, prepared, lend(shape.w_len())));
    let (affine, slope) = (lend(3 * shape.c as usize), lend(2 * shape.c as usize));
    let dy = lend(shape.y_len());
    let (x_rows, y_rows) = (rows(shape.x_rows(), shape.c), rows(shape.y_rows(), shape.k));
    let partials = room(device, device.partials_bytes(y_rows));
    let source = Source {
        x: x.mem(),
        affine: Some(affine.mem()),
        relu: true,
    };
    let conv = Conv {
        shape: &shape,
        prepared,
        x: source,
        scratch: scratch.mem(),
    };
    let epilogue = Epilogue {
        addend: None,
        mask: None,
        sums: Sums::Moments {
            partials: partials.mem(),
        },
    };
    let room_f32 = |len| writing::<f32, _>(device, len);
    let [y, ty] = [(); 2].map(|()| room_f32(shape.y_len()));
    let [dw, dbias, out] = [shape.w_len(), shape.k as usize, shape.n as usize].map(room_f32);
    device.fill(out.mem(), 0).expect("fill");
    let joined = room_f32(shape.x_len());
    let norm = room_f32(1);
    let tangent = Tangent {
        tx: Some(tx.mem()),
        slope: Some(slope.mem()),
    };
    device
        .conv_forward(conv, y.mem(), w.filters(), None, epilogue)
        .expect("forward");
    let first_partials = fetch_raw::<_, u32>(device, &partials);
    device
        .conv_tangent(conv, ty.mem(), tangent, w.filters(), tw.filters(), None, epilogue)
        .expect("tangent");
    device
        .conv_backward_input(
            conv,
            before.mem(),
            Write::Add,
            dy.mem(),
            w.filters(),
            Epilogue::none(),
        )
        .expect("input");
    device
        .conv_backward_weight(conv, dw.mem(), Some(dbias.mem()), Write::Set, dy.mem())
        .expect("weight");
    device
        .conv_contract(conv, out.mem(), dy.mem(), tw.filters(), None)
        .expect("contract");
    device
        .join_forward(x_rows, joined.mem(), source, source, Epilogue::none())
        .expect("join");
    let norm_scratch = room(device, device.gradient_norm_scratch_bytes(shape.x_len()));
    device
        .gradient_norm(norm.mem(), x.mem(), norm_scratch.mem())
        .expect("norm");
    let mut bits = vec![first_partials];
    bits.extend(
        [&partials, &y, &ty, &before, &dw, &dbias, &out, &joined, &norm].map(|o| fetch_raw(device, o)),
    );
    bits
}

#[test]
fn the_number_of_threads_changes_no_bit() {
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
    let devices = [1, 2, 3].map(|threads| Cpu::<f32>::new(Some(threads)).expect("threads"));
    for shape in [
        shape(33, 8, 16, 16, 3, 1),
        shape(9, 17, 15, 33, 3, 2),
        shape(1, 65, 7, 20, 5, 1),
        shape(300, 1, 64, 10, 1, 1),
        shape(40, 4, 64, 65, 3, 1),
    ] {
        let [one, two, three] = [0, 1, 2].map(|i| bits(&devices[i], shape));
        assert!(one == two && one == three, "{shape:?}");
        // And the same again: nothing carries over in scratch.
        assert!(one == bits(&devices[2], shape), "{shape:?}, again");
    }
}

#[test]
fn memory_that_is_not_there_is_an_error_with_the_need() {
    let device = Cpu::<f32>::new(Some(1)).expect("threads");
    for bytes in [1usize << 50, usize::MAX - 100, isize::MAX as usize] {
        let Err(error) = device.alloc(bytes) else {
            panic!("{bytes} bytes were given");
        };
        assert_eq!(error.exit_code(), 4);
        assert!(
            error.to_string().contains(&format!("{bytes} bytes needed")),
            "{error}"
        );
    }
    assert_eq!(
        Cpu::<f32>::new(Some(0)).err().map(|error| error.exit_code()),
        Some(2)
    );
}

#[test]
fn operands_that_overlap_or_do_not_fit_are_refused() {
    let device = Cpu::<f32>::new(Some(1)).expect("threads");
    let arena = device.alloc(1024).expect("memory");
    let span = |offset, bytes| Region { offset, bytes }.of(&arena);
    let refused = |result: l2b::Result<()>, why: &str| {
        let error = result.expect_err(why).to_string();
        assert!(error.contains("operand"), "{why}: {error}");
    };
    device.copy(span(0, 512), span(512, 512)).expect("neighbours");
    refused(device.copy(span(0, 512), span(256, 512)), "overlap");
    refused(device.copy(span(0, 256), span(512, 512)), "lengths");
    refused(device.copy(span(768, 512), span(0, 512)), "out of the arena");
    refused(device.upload(span(0, 256), &[0; 255]), "a shorter source");
    refused(
        device.download(&mut [0; 255], span(0, 256)),
        "a shorter destination",
    );
}

#[test]
fn at_the_kink_a_relu_is_closed_and_not_a_number_travels_on() {
    let device = &Cpu::<f32>::new(Some(1)).expect("threads");
    let x = reading::<f32, _>(device, &[f64::NAN, -1.0, 0.0, 1.0]);
    let d = reading::<f32, _>(device, &[1.0; 4]);
    let [y, dx] = [(); 2].map(|()| writing::<f32, _>(device, 4));
    let source = |x, relu| Source {
        x,
        affine: None,
        relu,
    };
    let rows = Rows { rows: 4, channels: 1 };
    let (a, b) = (source(x.mem(), true), source(d.mem(), false));
    device
        .join_forward(rows, y.mem(), a, b, Epilogue::none())
        .expect("join");
    let y = fetch::<f32, _>(device, &y);
    assert!(y[0].is_nan() && y[1..] == [1.0, 1.0, 2.0], "{y:?}");
    device
        .source_backward(rows, dx.mem(), Write::Set, d.mem(), a, None, Epilogue::none())
        .expect("backward");
    assert_eq!(fetch::<f32, _>(device, &dx), [1.0, 0.0, 0.0, 1.0]);
}
