//! What a device promises beyond single operations: structs arrive field by field, masks and draws agree with the host
//! bit for bit, runs repeat bit for bit in any order of threads, errors say what to do.

use super::common::{Operand, Random, fetch_raw, raw, reading, room, writing};
use super::device::{ORDERS, emulated, in_orders, open, set_order};
use super::fixtures;
use l2b::data::augment::Augment;
use l2b::device::cuda::{Cuda, devices};
use l2b::device::{
    AugmentShape, Conv, ConvShape, Device, Epilogue, Filters, Geometry, LossShape, Mem, PoolShape, Rows,
    Source, StepParams, Sums, Tangent, Write,
};
use l2b::engine::InnerProduct;

pub fn step_params() -> StepParams {
    StepParams {
        lr: 0.1,
        lambda: 0.2,
        eta: 1.5,
        mu: 0.9,
        weight_decay: 5e-4,
        clip: 0.25,
        seed: 0x0123_4567_89AB_CDEF,
        step: 56,
        reserved: 0,
    }
}

pub fn plain(x: &Operand<Cuda>) -> Source<'_, <Cuda as Device>::Arena> {
    Source {
        x: x.mem(),
        affine: None,
        relu: false,
    }
}

/// Filters of convolutions in f32, which read them as they are.
pub fn learned(w: Mem<'_, Cuda>) -> Filters<'_, <Cuda as Device>::Arena> {
    Filters {
        w,
        forward: w.slice(0, 0),
        backward: Some(w.slice(0, 0)),
    }
}

#[test]
fn structs_arrive_field_by_field() {
    let Some(cuda) = open() else { return };
    let step = StepParams {
        lr: 1.5,
        lambda: 2.5,
        eta: 3.5,
        mu: 4.5,
        weight_decay: 5.5,
        clip: 6.5,
        seed: 1 << 40 | 7,
        step: 8,
        reserved: 9,
    };
    let conv = ConvShape {
        n: 10,
        h: 11,
        w: 12,
        c: 13,
        k: 14,
        r: 15,
        s: 16,
        stride: 17,
        pad: 18,
    };
    let rows = Rows {
        rows: 19,
        channels: 20,
    };
    let pool = PoolShape {
        n: 21,
        h: 22,
        w: 23,
        c: 24,
        r: 25,
        s: 26,
    };
    let loss = LossShape {
        entries: 27,
        classes: 28,
    };
    let augment = AugmentShape {
        n: 29,
        h: 30,
        w: 31,
        c: 32,
        pad: 33,
        flip: 34,
        view: 35,
        gather: 36,
    };
    let got = cuda
        .echo_shapes(step, (conv, rows, pool), (loss, augment))
        .expect("echo");
    let mut want: Vec<f64> = (1..=6).map(|i| f64::from(i) + 0.5).collect();
    want.push((1u64 << 40 | 7) as f64);
    want.extend((8..=36).map(f64::from));
    assert_eq!(got, want);
}

/// Pre-activations within a few roundings of zero: every form of a source opens and closes the same elements, those that
/// one fused multiply-add of x - M says.
#[test]
fn masks_agree_bit_for_bit() {
    in_orders(|cuda| {
        let random = &mut Random::new(1);
        let shape = Rows {
            rows: 32,
            channels: 8,
        };
        let (mut a, mut c) = (random.range(8, 0.5, 2.0), random.range(8, -1.0, 1.0));
        let mut m = random.range(8, -1.0, 1.0);
        // One pre-activation that is exactly zero: closed.
        (a[0], c[0], m[0]) = (0.5, -0.5, 0.25);
        let x: Vec<f64> = (0..shape.len())
            .map(|i| {
                let root = (m[i % 8] - c[i % 8] / a[i % 8]) as f32;
                f64::from(f32::from_bits(
                    root.to_bits().wrapping_add((i / 8) as u32).wrapping_sub(16),
                ))
            })
            .collect();
        let open: Vec<bool> = (0..shape.len())
            .map(|i| (a[i % 8] as f32).mul_add(x[i] as f32 - m[i % 8] as f32, c[i % 8] as f32) > 0.0)
            .collect();
        assert!(open.iter().any(|&open| open) && open.iter().any(|&open| !open));

        let affine = [&a[..], &c[..], &m[..]].concat();
        let (x, affine) = (
            reading::<f32, Cuda>(cuda, &x),
            reading::<f32, Cuda>(cuda, &affine),
        );
        let ones = reading::<f32, Cuda>(cuda, &vec![1.0; shape.len()]);
        let zeros = reading::<f32, Cuda>(cuda, &vec![0.0; shape.len()]);
        let source = Source {
            x: x.mem(),
            affine: Some(affine.mem()),
            relu: true,
        };
        let none = Tangent {
            tx: None,
            slope: None,
        };
        let tangent = Tangent {
            tx: Some(ones.mem()),
            slope: None,
        };
        let masked = Epilogue {
            addend: None,
            mask: Some(source),
            sums: Sums::None,
        };
        let pattern = |out: &Operand<Cuda>| -> Vec<bool> {
            fetch_raw::<Cuda, f32>(cuda, out)
                .iter()
                .map(|&value| value != 0.0)
                .collect()
        };

        let out = writing::<f32, Cuda>(cuda, shape.len());
        cuda.join_forward(shape, out.mem(), source, plain(&zeros), Epilogue::none())
            .expect("forward");
        assert_eq!(pattern(&out), open, "forward");
        cuda.join_tangent(
            shape,
            out.mem(),
            (source, tangent),
            (plain(&zeros), none),
            Epilogue::none(),
        )
        .expect("tangent");
        assert_eq!(pattern(&out), open, "tangent");
        cuda.source_backward(
            shape,
            out.mem(),
            Write::Set,
            ones.mem(),
            source,
            None,
            Epilogue::none(),
        )
        .expect("adjoint");
        assert_eq!(pattern(&out), open, "adjoint");
        cuda.source_backward(shape, out.mem(), Write::Set, ones.mem(), plain(&x), None, masked)
            .expect("mask");
        assert_eq!(pattern(&out), open, "mask of an epilogue");

        // A 1x1 convolution with the identity reads the source as it is.
        let conv_shape = ConvShape {
            n: 32,
            h: 1,
            w: 1,
            c: 8,
            k: 8,
            r: 1,
            s: 1,
            stride: 1,
            pad: 0,
        };
        let prepared = cuda.prepare(&Geometry::Conv(conv_shape)).expect("prepare");
        let scratch = room(cuda, prepared.scratch_bytes);
        let identity: Vec<f64> = (0..64).map(|i| f64::from(u8::from(i / 8 == i % 8))).collect();
        let (identity, nothing) = (
            reading::<f32, Cuda>(cuda, &identity),
            reading::<f32, Cuda>(cuda, &[0.0; 64]),
        );
        let conv = Conv {
            shape: &conv_shape,
            prepared: &prepared,
            x: source,
            scratch: scratch.mem(),
        };
        cuda.conv_forward(conv, out.mem(), learned(identity.mem()), None, Epilogue::none())
            .expect("conv");
        assert_eq!(pattern(&out), open, "convolution");
        cuda.conv_tangent(
            conv,
            out.mem(),
            tangent,
            learned(identity.mem()),
            learned(nothing.mem()),
            None,
            Epilogue::none(),
        )
        .expect("conv tangent");
        assert_eq!(pattern(&out), open, "convolution's tangent");
    });
}

/// Channels in fours, but one operand after the other 4 bytes off its 16-byte boundary: the kernels that read one channel
/// at a time take over and give the same bits.
#[test]
fn operands_may_lie_at_any_address() {
    in_orders(|cuda| {
        let shape = ConvShape {
            n: 2,
            h: 5,
            w: 4,
            c: 4,
            k: 8,
            r: 3,
            s: 3,
            stride: 1,
            pad: 1,
        };
        let rows = Rows {
            rows: 40,
            channels: 4,
        };
        let (x_len, y_len, w_len) = (shape.x_len(), shape.y_len(), shape.w_len());
        let random = &mut Random::new(13);
        let values = [
            x_len, 12, x_len, 8, w_len, w_len, y_len, 24, y_len, y_len, x_len, w_len,
        ]
        .map(|len| {
            let values = random.values(len).into_iter();
            values.map(|value| value as f32).collect::<Vec<f32>>()
        });
        let prepared = cuda.prepare(&Geometry::Conv(shape)).expect("prepare");
        let (scratch, samples) = (room(cuda, prepared.scratch_bytes), room(cuda, 8));
        let fetch = |mem: Mem<Cuda>| {
            let mut bits = vec![0u32; mem.bytes / 4];
            cuda.download(bytemuck::cast_slice_mut(&mut bits), mem)
                .expect("download");
            bits
        };
        let results = |shifted: Option<usize>| -> l2b::Result<Vec<Vec<u32>>> {
            let operands = values.each_ref().map(|values| room(cuda, 4 * values.len() + 4));
            let at: Vec<Mem<Cuda>> = operands
                .iter()
                .zip(&values)
                .enumerate()
                .map(|(i, (operand, values))| {
                    let offset = if shifted == Some(i) { 4 } else { 0 };
                    operand.mem().slice(offset, 4 * values.len())
                })
                .collect();
            for (mem, values) in at.iter().zip(&values) {
                cuda.upload(*mem, bytemuck::cast_slice(values))?;
            }
            let [
                x,
                affine,
                tx,
                slope,
                w,
                tw,
                mask,
                mask_affine,
                dy,
                out_y,
                out_x,
                out_w,
            ] = at[..]
            else {
                unreachable!("12 operands")
            };
            let source = |x, affine| Source {
                x,
                affine: Some(affine),
                relu: true,
            };
            let masked = |x, affine| Epilogue {
                addend: None,
                mask: Some(source(x, affine)),
                sums: Sums::None,
            };
            let (read, tangent) = (
                source(x, affine),
                Tangent {
                    tx: Some(tx),
                    slope: Some(slope),
                },
            );
            let conv = Conv {
                shape: &shape,
                prepared: &prepared,
                x: read,
                scratch: scratch.mem(),
            };
            let (w, tw) = (learned(w), learned(tw));
            let mut bits = Vec::new();
            cuda.conv_forward(conv, out_y, w, None, masked(mask, mask_affine))?;
            bits.push(fetch(out_y));
            cuda.conv_tangent(conv, out_y, tangent, w, tw, None, masked(mask, mask_affine))?;
            bits.push(fetch(out_y));
            cuda.conv_backward_input(conv, out_x, Write::Add, dy, w, masked(x, affine))?;
            bits.push(fetch(out_x));
            cuda.conv_backward_weight(conv, out_w, None, Write::Add, dy)?;
            bits.push(fetch(out_w));
            cuda.fill(samples.mem(), 0)?;
            cuda.conv_contract(conv, samples.mem(), dy, tw, None)?;
            bits.push(fetch(samples.mem()));
            cuda.join_forward(rows, out_x, read, source(tx, affine), masked(x, affine))?;
            bits.push(fetch(out_x));
            cuda.join_tangent(rows, out_x, (read, tangent), (read, tangent), masked(x, affine))?;
            bits.push(fetch(out_x));
            cuda.source_backward(rows, out_x, Write::Add, tx, read, Some(slope), masked(x, affine))?;
            bits.push(fetch(out_x));
            Ok(bits)
        };
        let aligned = results(None).expect("aligned operands");
        for i in 0..values.len() {
            assert_eq!(
                results(Some(i)).expect("a shifted operand"),
                aligned,
                "operand {i}"
            );
        }
    });
}

/// The kernel draws what the host draws and looks values up in the host's table.
#[test]
fn augmentation_is_the_hosts() {
    in_orders(|cuda| {
        for (n, h, w, c, pad, flip) in [
            (5, 8, 8, 1, 1, 0),
            (33, 5, 7, 3, 4, 1),
            (2, 1, 1, 7, 0, 1),
            (3, 6, 4, 2, 0, 0),
        ] {
            let random = &mut Random::new(4);
            let len = n * h * w * c;
            let images: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
            let ids: Vec<u32> = (0..n as u32).map(|i| (i * 7 + 3) % 300).collect();
            let table: Vec<f32> = random
                .values(c * 256)
                .into_iter()
                .map(|value| value as f32)
                .collect();
            let step = step_params();
            let view = 257;
            let mut want = vec![0.0f32; len];
            Augment {
                seed: step.seed,
                time: step.step,
                view,
                pad,
                flip,
                channels: c as u32,
                height: h as u32,
                width: w as u32,
            }
            .apply(&mut want, &images, &ids, &table)
            .expect("host");

            let shape = AugmentShape {
                n: n as i32,
                h: h as i32,
                w: w as i32,
                c: c as i32,
                pad: pad as i32,
                flip: flip as i32,
                view: view as i32,
                gather: 0,
            };
            let out = writing::<f32, Cuda>(cuda, len);
            let (images_lent, ids_lent) = (raw(cuda, &images), raw(cuda, &ids));
            let (table, step) = (raw(cuda, &table), raw(cuda, &[step]));
            let (table, step) = (table.mem(), step.mem());
            cuda.augment(shape, out.mem(), images_lent.mem(), ids_lent.mem(), table, step)
                .expect("augment");
            assert_eq!(fetch_raw::<Cuda, f32>(cuda, &out), want, "{shape:?}");

            // The same images at their places in a whole set.
            let mut set = vec![0u8; 300 * h * w * c];
            for (id, image) in ids.iter().zip(images.chunks(h * w * c)) {
                set[*id as usize * h * w * c..][..h * w * c].copy_from_slice(image);
            }
            let (set, ids) = (raw(cuda, &set), raw(cuda, &ids));
            let shape = AugmentShape { gather: 1, ..shape };
            cuda.fill(out.mem(), 0xff).expect("fill");
            cuda.augment(shape, out.mem(), set.mem(), ids.mem(), table, step)
                .expect("augment");
            assert_eq!(fetch_raw::<Cuda, f32>(cuda, &out), want, "{shape:?}");
        }
    });
}

/// One step of the method, twice in each order of threads and blocks.
#[test]
fn runs_repeat_bit_for_bit() {
    for (case, inner) in [
        ("batch-momentum-w5", InnerProduct::Tangent),
        ("frozen-plain-w5", InnerProduct::Contraction),
        ("batch-momentum-w16", InnerProduct::Tangent),
    ] {
        let input = fixtures::input(case);
        let mut first = None;
        for order in ORDERS {
            let Some(cuda) = open() else { return };
            set_order(order);
            let folder = tempfile::tempdir().expect("a folder");
            let output = folder.path().join("out.safetensors");
            l2b::meta_step::run(cuda, &input, &output, inner).expect("meta step");
            let bytes = std::fs::read(&output).expect("output");
            assert!(
                *first.get_or_insert(bytes.clone()) == bytes,
                "{case} in order {order}"
            );
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let Some(cuda) = open() else {
        let error = Cuda::new(0).expect_err("no device");
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("hint"), "{error}");
        return;
    };
    let Err(error) = cuda.alloc(1 << 45) else {
        panic!("no GPU has 32 TiB")
    };
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(
        text.contains("33554432.0 MiB needed") && text.contains("free") && text.contains("batch"),
        "{text}"
    );

    let (short, long) = (room(&cuda, 16), room(&cuda, 32));
    let rows = Rows { rows: 2, channels: 4 };
    let error = cuda.join_forward(rows, short.mem(), plain(&long), plain(&long), Epilogue::none());
    assert!(error.expect_err("too short").to_string().contains("operand y"));
    assert!(cuda.copy(short.mem(), long.mem()).is_err());
    assert!(cuda.upload(short.mem(), &[0; 15]).is_err());

    let error = Cuda::new(99).expect_err("no such GPU").to_string();
    assert!(error.contains("cuda:99") && error.contains("hint"), "{error}");
}

#[test]
fn devices_are_listed() {
    let Some(cuda) = open() else { return };
    let listing = devices().expect("listing");
    let gpu = &listing.gpus[0];
    assert!(
        listing.driver >= Some((13, 0))
            && gpu.capability >= (8, 0)
            && gpu.multiprocessors > 0
            && gpu.memory > 1 << 30,
        "{listing:?}"
    );
    let name = if emulated() {
        "emulator".to_owned()
    } else {
        format!("cuda:0 ({})", gpu.name)
    };
    assert_eq!(cuda.name(), name);
}
