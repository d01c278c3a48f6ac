//! Filters as tensor cores read them: their layouts against plain loops, and passes that read those of their parameters.

use l2b::Result;
use l2b::device::cuda::Cuda;
use l2b::device::{ALIGN, Arrangement, ConvShape, Device, Element, Filters, Geometry, Mem, Prepared};
use l2b::engine::{InnerProduct, VirtualStep};
use l2b::meta_step;
use l2b::step::Objective;

use super::common::{fetch_raw, raw, room};
use super::device::{in_orders_as, open_as};
use super::fixtures;
use super::operations::conv;

/// Filters of a convolution: no two neighbours alike, and exact in every precision.
fn values(number: usize, shape: &ConvShape) -> Vec<f32> {
    (0..shape.w_len())
        .map(|i| (1 + (i * 7 + number * 31) % 251) as f32)
        .collect()
}

/// Rows of `depth` numbers and zeros up to whole 16-byte chunks of A.
fn rows<A: Element>(out: &mut Vec<A>, row: impl Iterator<Item = f32>) {
    out.extend(row.map(|value| A::from_f64(value.into())));
    out.resize(out.len().next_multiple_of(16 / size_of::<A>()), A::from_f64(0.0));
}

/// `[K][(r,s,c)]`, and of each parity class `[C][(i,j,k)]`.
fn want<A: Element>(shape: &ConvShape, w: &[f32]) -> [Vec<A>; 2] {
    let ConvShape {
        c,
        k,
        r,
        s,
        stride,
        pad,
        ..
    } = *shape;
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for filter in w.chunks(w.len() / k as usize) {
        rows(&mut forward, filter.iter().copied());
    }
    let at = |(k, i, j): (i32, i32, i32), c: i32| w[(((k * r + i) * s + j) * shape.c + c) as usize];
    for (h, v) in (0..stride).flat_map(|h| (0..stride).map(move |v| (h, v))) {
        let taps = |class: i32, taps: i32| (0..taps).filter(move |tap| (tap - class - pad) % stride == 0);
        for c in 0..c {
            let row = taps(h, r).flat_map(|i| taps(v, s).map(move |j| (i, j)));
            let row = row.flat_map(|(i, j)| (0..k).map(move |k| (k, i, j)));
            rows(&mut backward, row.map(|tap| at(tap, c)));
        }
    }
    [forward, backward]
}

/// Many convolutions in one call, far more than a launch takes: odd channels, several blocks, classes without taps; and
/// nothing is written between them.
fn layouts<D: Device>(make: impl Fn(usize) -> Result<D>) {
    let kinds = [
        conv(1, (9, 8), (3, 16), (3, 3), 1, 1),
        conv(1, (9, 8), (64, 72), (3, 3), 1, 1),
        conv(1, (9, 8), (16, 40), (3, 3), 2, 1),
        conv(1, (9, 8), (16, 24), (1, 1), 2, 0),
        conv(1, (9, 8), (5, 7), (5, 2), 3, 2),
        conv(1, (9, 8), (1, 1), (1, 1), 4, 0),
    ];
    let shapes: Vec<ConvShape> = kinds.into_iter().cycle().take(40).collect();
    in_orders_as(make, |device| {
        let prepare = |shape: &ConvShape| device.prepare(&Geometry::Conv(*shape)).expect("prepare");
        let prepared: Vec<Prepared<D::Algorithm>> = shapes.iter().map(prepare).collect();
        let learned: Vec<Vec<f32>> = shapes.iter().enumerate().map(|(i, s)| values(i, s)).collect();
        let lent: Vec<_> = learned.iter().map(|w| raw(device, w)).collect();
        let place = |bytes: usize| bytes.next_multiple_of(ALIGN) + ALIGN;
        let total = prepared
            .iter()
            .map(|p| place(p.arranged.forward) + place(p.arranged.backward));
        let all = room(device, total.sum());
        let mut used = 0;
        let mut next = |bytes: usize| -> Mem<D> {
            used += place(bytes);
            all.mem().slice(used - place(bytes), bytes)
        };
        // Every third as v's are: forwards alone.
        let list: Vec<Arrangement<D>> = (0..shapes.len())
            .map(|i| Arrangement {
                shape: &shapes[i],
                prepared: &prepared[i],
                filters: Filters {
                    w: lent[i].mem(),
                    forward: next(prepared[i].arranged.forward),
                    backward: Some(next(prepared[i].arranged.backward)).filter(|_| i % 3 != 2),
                },
            })
            .collect();
        device.arrange_filters(&list).expect("arrange_filters");
        let mut wanted = vec![0xFF; used];
        for ((of, shape), w) in list.iter().zip(&shapes).zip(&learned) {
            let [forward, backward] = want::<D::Act>(shape, w);
            let mut put = |mem: Mem<D>, values: &[D::Act]| {
                wanted[mem.offset..mem.offset + mem.bytes].copy_from_slice(bytemuck::cast_slice(values));
            };
            put(of.filters.forward, &forward);
            of.filters
                .backward
                .into_iter()
                .for_each(|mem| put(mem, &backward));
        }
        let got: Vec<u8> = fetch_raw(device, &all);
        let wrong = got.iter().zip(&wanted).position(|(got, want)| got != want);
        assert_eq!(wrong, None, "first wrong byte");
    });
}

#[test]
fn filters_arranged_in_tf32() {
    layouts(Cuda::tf32);
}

#[test]
fn filters_arranged_in_bf16() {
    layouts(Cuda::bf16);
}

/// The train batch meets the filters of θ, bit for bit, whatever the meta batch, of another size, has met before.
fn passes_meet_their_parameters<D: Device>(make: impl Fn(usize) -> Result<D>) {
    for virtual_step in [VirtualStep::Plain, VirtualStep::Momentum] {
        let logits = |objective| {
            let device = open_as(&make)?;
            let input = fixtures::input("batch-momentum-w16");
            let loaded = meta_step::load(device, &input, InnerProduct::Tangent).expect("a fixture");
            let (mut engine, params) = (loaded.engine, loaded.params);
            assert_ne!(loaded.sizes.0, loaded.sizes.1);
            engine.options.virtual_step = virtual_step;
            // Evaluation in between arranges what it reads alone.
            engine.step(Objective::CrossEntropy, &params).expect("a step");
            engine.logits().expect("logits");
            engine.step(objective, &params).expect("a step");
            Some(engine.read_logits().expect("logits"))
        };
        assert_eq!(
            logits(Objective::L2b),
            logits(Objective::CrossEntropy),
            "{virtual_step:?}"
        );
    }
}

#[test]
fn passes_in_tf32_meet_the_filters_of_their_parameters() {
    passes_meet_their_parameters(Cuda::tf32);
}

#[test]
fn passes_in_bf16_meet_the_filters_of_their_parameters() {
    passes_meet_their_parameters(Cuda::bf16);
}
