//! Every convolution of the bundled digits net and of ResNet-18 at 32×32, batch 32, on the CPU device in f32: what one
//! pass achieves of the machine's GEMM speed (`benches/gemm.rs`). Checks one value of each result, then times.
//!
//! `cargo bench --bench conv [-- THREADS]`

use std::time::Instant;

use l2b::device::cpu::Cpu;
use l2b::device::{
    Conv, ConvShape, Device, Element, Epilogue, Geometry, Mem, Region, Source, Sums, Tangent, Write,
};

type D = Cpu<f32>;

struct Operand(<D as Device>::Arena, usize);

impl Operand {
    fn mem(&self) -> Mem<'_, D> {
        Region {
            offset: 0,
            bytes: self.1,
        }
        .of(&self.0)
    }
}

fn values(device: &D, len: usize) -> Operand {
    let values: Vec<f32> = (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let operand = room(device, len * 4);
    device
        .upload(operand.mem(), bytemuck::cast_slice(&values))
        .expect("upload");
    operand
}

fn room(device: &D, bytes: usize) -> Operand {
    Operand(device.alloc(bytes.max(4)).expect("memory"), bytes)
}

/// Seconds of the best call of many: other work on the machine only adds.
fn time(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.15 {
        let call = Instant::now();
        f();
        best = best.min(call.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let device = D::new(threads).expect("device");
    println!(
        "GFLOP/s, f32, {} threads; relu(A·(x − M) + C) at the input, moments at the output",
        device.threads()
    );
    println!(
        "{:28} {:>8} {:>8} {:>8} {:>8}",
        "shape", "forward", "tangent", "input", "weight"
    );
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
    let digits = [
        (1, shape(64, 8, 1, 16, 3, 1)),
        (4, shape(64, 8, 16, 16, 3, 1)),
        (1, shape(64, 8, 16, 32, 3, 2)),
        (1, shape(64, 8, 16, 32, 1, 2)),
        (3, shape(64, 4, 32, 32, 3, 1)),
        (1, shape(64, 4, 32, 64, 3, 2)),
        (1, shape(64, 4, 32, 64, 1, 2)),
        (3, shape(64, 2, 64, 64, 3, 1)),
        (1, shape(64, 1, 64, 10, 1, 1)),
    ];
    let resnet = [
        (1, shape(32, 32, 3, 64, 3, 1)),
        (4, shape(32, 32, 64, 64, 3, 1)),
        (1, shape(32, 32, 64, 128, 3, 2)),
        (1, shape(32, 32, 64, 128, 1, 2)),
        (3, shape(32, 16, 128, 128, 3, 1)),
        (1, shape(32, 16, 128, 256, 3, 2)),
        (1, shape(32, 16, 128, 256, 1, 2)),
        (3, shape(32, 8, 256, 256, 3, 1)),
        (1, shape(32, 8, 256, 512, 3, 2)),
        (1, shape(32, 8, 256, 512, 1, 2)),
        (3, shape(32, 4, 512, 512, 3, 1)),
        (1, shape(32, 1, 512, 10, 1, 1)),
    ];
    for (net, shapes) in [("digits", &digits[..]), ("resnet-18", &resnet[..])] {
        let mut total = [0.0; 4];
        for (count, shape) in shapes {
            let times = bench(&device, shape);
            let flops = [1.0, 2.0, 1.0, 1.0].map(|passes| passes * shape.flops() / 1e9);
            let ConvShape {
                n,
                h,
                c,
                k,
                r,
                stride,
                ..
            } = shape;
            print!(
                "{:28}",
                format!("{count} x n{n} {h}x{h} {c}->{k} {r}x{r}/{stride}")
            );
            for ((total, time), flops) in total.iter_mut().zip(times).zip(flops) {
                *total += f64::from(*count) * time;
                print!(" {:8.1}", flops / time);
            }
            println!("   {}", times.map(|t| format!("{:.0} µs", t * 1e6)).join(", "));
        }
        println!(
            "{net}: all convolutions, ms: {}",
            total.map(|t| format!("{:.2}", t * 1e3)).join(", ")
        );
    }
}

fn bench(device: &D, shape: &ConvShape) -> [f64; 4] {
    let prepared = &device.prepare(&Geometry::Conv(*shape)).expect("prepare");
    let [x, tx, y, d] =
        [shape.x_len(), shape.x_len(), shape.y_len(), shape.x_len()].map(|len| values(device, len));
    let [w, tw, dw] = [(); 3].map(|()| values(device, shape.w_len()));
    let [affine, slope] = [3, 2].map(|rows| values(device, rows * shape.c as usize));
    let rows = l2b::device::Rows {
        rows: shape.y_rows() as i32,
        channels: shape.k,
    };
    let partials = room(device, device.partials_bytes(rows));
    let scratch = room(device, prepared.scratch_bytes);
    let saved = room(device, prepared.saved_bytes);
    let conv = Conv {
        shape,
        prepared,
        x: Source {
            x: x.mem(),
            affine: Some(affine.mem()),
            relu: true,
        },
        saved: saved.mem(),
        scratch: scratch.mem(),
    };
    let epilogue = Epilogue {
        mask: None,
        sums: Sums::Moments {
            partials: partials.mem(),
        },
    };
    let forward = time(|| {
        device
            .conv_forward(conv, y.mem(), w.mem(), None, epilogue)
            .expect("forward")
    });
    check(device, shape, &y, &x, &w, &affine);
    let tangent = Tangent {
        tx: Some(tx.mem()),
        slope: Some(slope.mem()),
    };
    let ty = values(device, shape.y_len());
    let tangent = time(|| {
        device
            .conv_tangent(conv, ty.mem(), tangent, w.mem(), tw.mem(), None, epilogue)
            .expect("tangent");
    });
    let input = time(|| {
        device
            .conv_backward_input(conv, d.mem(), Write::Set, y.mem(), w.mem(), Epilogue::none())
            .expect("input");
    });
    let weight = time(|| {
        device
            .conv_backward_weight(conv, dw.mem(), None, Write::Set, y.mem())
            .expect("weight");
    });
    [forward, tangent, input, weight]
}

/// The last output value, formed by hand.
fn check(device: &D, shape: &ConvShape, y: &Operand, x: &Operand, w: &Operand, affine: &Operand) {
    let fetch = |operand: &Operand| {
        let mut values = vec![0.0f32; operand.1 / 4];
        device
            .download(bytemuck::cast_slice_mut(&mut values), operand.mem())
            .expect("download");
        values
    };
    let [y, x, w, affine] = [y, x, w, affine].map(fetch);
    let [c, k] = [shape.c, shape.k].map(|v| v as usize);
    let mut want = 0.0;
    for r in 0..shape.r {
        for s in 0..shape.s {
            let h = (shape.p() - 1) * shape.stride + r - shape.pad;
            let v = (shape.q() - 1) * shape.stride + s - shape.pad;
            if !(0..shape.h).contains(&h) || !(0..shape.w).contains(&v) {
                continue;
            }
            for i in 0..c {
                let pixel = (((shape.n - 1) * shape.h + h) * shape.w + v) as usize;
                let value = (affine[i] * (x[pixel * c + i] - affine[2 * c + i]) + affine[c + i]).max(0.0);
                let tap = (((k - 1) * shape.r as usize + r as usize) * shape.s as usize + s as usize) * c;
                want += value.to_f64() * w[tap + i].to_f64();
            }
        }
    }
    let got = y[y.len() - 1].to_f64();
    assert!(
        (got - want).abs() <= 1e-4 * (shape.taps() * c) as f64,
        "{shape:?}: got {got}, want {want}"
    );
}
