//! Convolutions by warpgroup products, which GPUs of compute capability 9.0 have: small ones against the oracle, all epilogues,
//! with tangents and both adjoints; those large enough for warpgroups on a GPU against the same by warps.

use super::common::conv::same_3x3;
use super::common::ops::{Expected, KINDS, Rounding, Setup, rows};
use super::common::{Arranged, Operand, Random, fetch, reading, room, writing};
use super::device::{emulated, open_as, reduced, set_order, thinned};
use half::bf16;
use l2b::device::cuda::{Cuda, devices};
use l2b::device::{Conv, ConvShape, Device, Epilogue, Geometry, Mem, Source, Tangent, Write};

type Bf16 = Cuda<bf16>;
type Arena = <Bf16 as Device>::Arena;

/// That forward, backward-input and the weight gradient go to warpgroups, or not.
fn assert_plan(cuda: &Bf16, shape: ConvShape, to_warpgroups: [bool; 3]) {
    let plan = cuda.prepare(&Geometry::Conv(shape)).expect("prepare").algorithm;
    let plan = format!("{plan:?}");
    let found = ["forward_fields", "backward_fields", "weight_slabs"]
        .map(|division| plan.contains(&format!("{division}: Some(")));
    assert_eq!(found, to_warpgroups, "{shape:?}: {plan}");
}

/// A device that has warpgroup products.
fn open() -> Option<Bf16> {
    let cuda = open_as(Cuda::bf16)?;
    let listing = devices().expect("listing the GPUs");
    let hopper = emulated() || listing.usable().is_some_and(|gpu| gpu.capability == (9, 0));
    if !hopper {
        println!("skipped: no device of compute capability 9.0");
    }
    hopper.then_some(cuda)
}

#[test]
fn convolution_by_warpgroups() {
    // Both tiles, patches of one image and of sixteen, several images of a tile and several patches of an image, two tiles of the
    // emulator's one block; the last has no whole tiles.
    let shapes = [
        (8, (8, 8), (64, 128)),
        (1, (16, 32), (64, 64)),
        (16, (4, 4), (64, 128)),
        (16, (2, 12), (64, 64)),
    ];
    for (i, (n, edges, channels)) in thinned(shapes, 4) {
        let Some(cuda) = open() else { return };
        let shape = same_3x3(n, edges, channels);
        // On a GPU forward and backward-input go to warps: they would have work for few of its multiprocessors. No tile of 64
        // filters is of images narrower than 16, no slab of half an image's row.
        let [forward, backward] = [i < 3, i == 1].map(|takes| takes && emulated());
        assert_plan(&cuda, shape, [forward, backward, i != 1]);
        set_order(["forward", "random:1", "reversed", "forward"][i]);
        Setup::rounding(&cuda, Rounding::Bf16).conv(shape, KINDS[i]);
        if !reduced() {
            set_order("random:2");
            Setup::rounding(&cuda, Rounding::Bf16).conv(shape, KINDS[(i + 1) % 4]);
        }
    }
}

#[test]
fn warpgroups_agree_with_warps() {
    // Both tiles, two waves of 132 multiprocessors, tiles of one to sixteen images: the stages of a ResNet-18.
    let on_gpu = [
        (16, (32, 32), (128, 128)),
        (64, (32, 32), (64, 64)),
        (64, (32, 32), (128, 128)),
        (128, (16, 16), (128, 128)),
        (512, (8, 8), (128, 128)),
        (256, (4, 4), (512, 512)),
    ];
    let on_emulator = [(4, (16, 16), (64, 64)), (16, (4, 4), (128, 128))];
    let shapes = if emulated() { &on_emulator[..] } else { &on_gpu[..] };
    for (i, &(n, edges, channels)) in thinned(shapes, shapes.len()) {
        let Some(cuda) = open() else { return };
        let shape = same_3x3(n, edges, channels);
        // What few multiprocessors are enough for, others leave to warps.
        let count = devices().expect("listing the GPUs").gpus[0].multiprocessors;
        if emulated() || count == 132 {
            assert_plan(&cuda, shape, [true; 3]);
        }
        set_order(["random:3", "reversed", "forward"][i % 3]);
        by_warpgroups_and_warps(&cuda, shape, KINDS[(3 + 3 * i) % 4]);
    }
}

/// Values at an address that allows no 16-byte access: what reads them goes to warps.
struct Apart(Operand<Bf16>);

impl Apart {
    fn new(cuda: &Bf16, values: &[f64]) -> Self {
        Apart(reading::<bf16, Bf16>(cuda, &[&[0.0], values].concat()))
    }

    fn mem(&self) -> Mem<'_, Bf16> {
        let all = self.0.mem();
        all.slice(2, all.bytes - 2)
    }
}

/// Forward, tangent and backward-input by warpgroups, under all epilogues, against the same by warps under none. Operands are the
/// same bits; what differs is the order of sums, and with it the last bit of what is stored on either side.
fn by_warpgroups_and_warps(cuda: &Bf16, shape: ConvShape, kind: usize) {
    let setup = Setup::rounding(cuda, Rounding::Bf16);
    let random = &mut Random::new(30 + kind as u64);
    let prepared = &cuda.prepare(&Geometry::Conv(shape)).expect("prepare");
    let scratch = room(cuda, prepared.scratch_bytes);
    let (x_shape, y_shape) = (rows(shape.x_rows(), shape.c), rows(shape.y_rows(), shape.k));

    let x = setup.random_source(random, x_shape, kind);
    let (lent, apart) = (setup.lend(&x), Apart::new(cuda, &x.x));
    let conv = |x| Conv {
        shape: &shape,
        prepared,
        x,
        scratch: scratch.mem(),
    };
    let warpgroups = conv(lent.source());
    let warps = conv(Source {
        x: apart.mem(),
        ..lent.source()
    });
    let lent = |values: Vec<f64>| reading::<f32, Bf16>(cuda, &values);
    let [w, tw] = [(); 2].map(|()| Arranged::new(cuda, &shape, prepared, lent(random.values(shape.w_len()))));
    let bias = lent(random.values(shape.k as usize));

    // Images are of order 1 and filters half of it.
    let compare =
        |name: &str, shape, depth: usize, before: Option<&[f64]>, want: &Operand<Bf16>, run: &Run| {
            let want = fetch::<bf16, Bf16>(cuda, want);
            let largest = want.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
            let expected = Expected {
                shape,
                depth,
                want: &want,
                sizes: &vec![depth as f64; want.len()],
                before,
                slack: largest / 256.0,
            };
            setup.epilogues(&format!("{name}, source {kind}"), &expected, run);
        };
    let depth = shape.taps() * shape.c as usize;

    let forward = |conv: Conv<Bf16>, y: &Operand<Bf16>, end: Epilogue<Arena>| {
        let (w, bias) = (w.filters(), Some(bias.mem()));
        cuda.conv_forward(conv, y.mem(), w, bias, end)
            .expect("conv_forward");
    };
    let want = writing::<bf16, Bf16>(cuda, y_shape.len());
    forward(warps, &want, Epilogue::none());
    compare(
        &format!("y of {shape:?}"),
        y_shape,
        depth,
        None,
        &want,
        &|y, end| {
            forward(warpgroups, y, end);
        },
    );

    let tx = reading::<bf16, Bf16>(cuda, &random.values(x_shape.len()));
    let slope = lent(random.values(2 * shape.c as usize));
    for both in [false, true] {
        let tangent = |conv: Conv<Bf16>, ty: &Operand<Bf16>, end: Epilogue<Arena>| {
            let tx = Tangent {
                tx: both.then(|| tx.mem()),
                slope: both.then(|| slope.mem()),
            };
            let (w, tw, bias) = (w.filters(), tw.filters(), Some(bias.mem()));
            cuda.conv_tangent(conv, ty.mem(), tx, w, tw, bias, end)
                .expect("conv_tangent");
        };
        let want = writing::<bf16, Bf16>(cuda, y_shape.len());
        tangent(warps, &want, Epilogue::none());
        let name = format!("ty of {shape:?}, tx and slope {both}");
        compare(&name, y_shape, 2 * depth, None, &want, &|ty, end| {
            tangent(warpgroups, ty, end)
        });
    }

    let dy = setup.act(random, y_shape.len());
    let (apart, dy) = (Apart::new(cuda, &dy), reading::<bf16, Bf16>(cuda, &dy));
    let before = setup.act(random, x_shape.len());
    for write in [Write::Set, Write::Add] {
        let backward = |dy: Mem<Bf16>, d: &Operand<Bf16>, end: Epilogue<Arena>| {
            cuda.conv_backward_input(warpgroups, d.mem(), write, dy, w.filters(), end)
                .expect("conv_backward_input");
        };
        let want = reading::<bf16, Bf16>(cuda, &before);
        backward(apart.mem(), &want, Epilogue::none());
        let before = (write == Write::Add).then_some(&before[..]);
        let depth = shape.taps() * shape.k as usize;
        compare(
            &format!("d of {shape:?}, {write:?}"),
            x_shape,
            depth,
            before,
            &want,
            &|d, end| {
                backward(dy.mem(), d, end);
            },
        );
    }
}

/// An operation that writes its output under an epilogue.
type Run<'a> = dyn Fn(&Operand<Bf16>, Epilogue<Arena>) + 'a;
