//! Devices that round where the GPU's kernels round.

use super::*;

/// A device that rounds, with the spacing at 1 of the numbers it stores and the rounding of what it multiplies.
fn rounded(rounding: Rounding, test: impl Fn(&Setup<Cpu<f32>>)) {
    let (eps, operand) = match rounding {
        Rounding::None => (2f64.powi(-23), ops::Rounding::None),
        Rounding::Tf32 => (2f64.powi(-23), ops::Rounding::Tf32),
        Rounding::Bf16 => (2f64.powi(-7), ops::Rounding::Bf16),
    };
    let device = Cpu::rounded(Some(2), rounding).expect("threads");
    test(&Setup {
        device: &device,
        eps,
        operand,
    });
}

#[test]
fn every_operation_within_the_spacing_of_what_it_rounds_to() {
    for rounding in [Rounding::Tf32, Rounding::Bf16] {
        rounded(rounding, |setup| {
            for (i, shape) in conv_shapes().into_iter().enumerate().step_by(7) {
                setup.conv(shape, KINDS[i / 7 % 4]);
            }
            for (rows, channels) in [(5, 3), (129, 64), (300, 7)] {
                setup.rows(Rows { rows, channels });
            }
            let (n, h, w, c, r, s) = (5, 5, 7, 3, 2, 3);
            setup.pool(PoolShape { n, h, w, c, r, s }, 3);
            // Both sides of the identity are off by the rounding of their operands.
            let eps = match rounding {
                Rounding::None => setup.eps,
                Rounding::Tf32 => 2f64.powi(-10),
                Rounding::Bf16 => 2f64.powi(-7),
            };
            let (device, operand) = (setup.device, setup.operand);
            Setup { device, eps, operand }.conv_adjoint(conv_shapes()[25]);
        });
    }
}

/// One pixel, one channel, one filter.
const ONE: ConvShape = ConvShape {
    n: 1,
    h: 1,
    w: 1,
    c: 1,
    k: 1,
    r: 1,
    s: 1,
    stride: 1,
    pad: 0,
};

/// x·w as a convolution or a linear layer forms it.
fn product(rounding: Rounding, node: fn(ConvShape) -> Geometry, x: f32, w: f32) -> f32 {
    let device = &Cpu::rounded(Some(1), rounding).expect("threads");
    let prepared = &device.prepare(&node(ONE)).expect("prepare");
    let [x, w] = [x, w].map(|value| raw(device, &[value]));
    let w = Arranged::new(device, &ONE, prepared, w);
    let y = writing::<f32, _>(device, 1);
    let scratch = room(device, prepared.scratch_bytes);
    let conv = Conv {
        shape: &ONE,
        prepared,
        x: Source {
            x: x.mem(),
            affine: None,
            relu: false,
        },
        scratch: scratch.mem(),
    };
    device
        .conv_forward(conv, y.mem(), w.filters(), None, Epilogue::none())
        .expect("forward");
    fetch_raw::<_, f32>(device, &y)[0]
}

#[test]
fn products_of_known_numbers() {
    let unit = |exponent: i32| 2f32.powi(exponent);
    for (rounding, x, w, want) in [
        // Operands: a tie goes to even in bf16, away from zero in tf32.
        (Rounding::Bf16, 1.0 + unit(-8), 1.0, 1.0),
        (Rounding::Bf16, 1.0, 1.0 + 3.0 * unit(-8), 1.0 + unit(-6)),
        (Rounding::Tf32, 1.0 + unit(-11), 1.0, 1.0 + unit(-10)),
        (Rounding::Tf32, 1.0, -1.0 - unit(-11), -1.0 - unit(-10)),
        (Rounding::Tf32, 1.0 + unit(-12), 1.0, 1.0),
        // What is stored: (1 + 2⁻⁷)² = 1 + 2⁻⁶ + 2⁻¹⁴.
        (Rounding::Bf16, 1.0 + unit(-7), 1.0 + unit(-7), 1.0 + unit(-6)),
        (
            Rounding::Tf32,
            1.0 + unit(-7),
            1.0 + unit(-7),
            1.0 + unit(-6) + unit(-14),
        ),
        (
            Rounding::Tf32,
            1.0 + unit(-10),
            1.0 + unit(-10),
            1.0 + unit(-9) + unit(-20),
        ),
        (Rounding::None, 1.0 + unit(-20), 1.0, 1.0 + unit(-20)),
    ] {
        assert_eq!(
            product(rounding, Geometry::Conv, x, w),
            want,
            "{rounding:?}: {x:e} · {w:e}"
        );
        // The head rounds nothing.
        assert_eq!(
            product(rounding, Geometry::Linear, x, w),
            x * w,
            "{rounding:?}: {x:e} · {w:e}"
        );
    }
}

#[test]
fn activations_are_stored_in_bf16_and_nothing_else() {
    let shape = conv_shapes()[50];
    let is_bf16 = |values: &[u32]| values.iter().all(|bits| bits & 0xffff == 0);
    let bits = |rounding| bits(&Cpu::rounded(Some(1), rounding).expect("threads"), shape);
    let rounded = bits(Rounding::Bf16);
    for (i, values) in rounded.iter().enumerate() {
        // y, its tangent, the adjoint, the join; not sums, weight gradients, contraction and norm.
        assert_eq!(
            is_bf16(values),
            [2, 3, 4, 8].contains(&i),
            "result {i} of {shape:?}"
        );
    }
    assert!(bits(Rounding::Tf32).iter().all(|values| !is_bf16(values)));
    // The sums are those of the stored values.
    let channels = shape.k as usize;
    let rows = shape.y_rows();
    assert!(rows <= 128);
    for c in 0..channels {
        let stored = rounded[2].iter().skip(c).step_by(channels);
        let mean = stored.map(|bits| f64::from(f32::from_bits(*bits))).sum::<f64>() / rows as f64;
        let sum = f64::from(f32::from_bits(rounded[0][c]));
        assert!((sum - mean).abs() <= 1e-5, "channel {c}: {sum} against {mean}");
    }
}
