//! What a step reads from the outside, in device memory: step parameters, sample ids, labels and images of both slots, and
//! whole image sets that are kept there.
//!
//! Everything small lies in one piece, the *head*, so that it crosses in one copy.

use crate::device::{ALIGN, AugmentShape, Device, Element, Layout, Mem, Region, StepParams};
use crate::net::Program;
use crate::{Error, Result};

/// Which of the two inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Train,
    Meta,
}

/// Images of a batch, `[N,H,W,C]`. All but `Values` are augmented and normalised on the device; ids are the samples'
/// numbers in the dataset.
#[derive(Clone, Copy)]
pub enum Images<'a> {
    /// Bytes.
    Pixels {
        bytes: &'a [u8],
        ids: &'a [u32],
        augment: AugmentShape,
    },
    /// Samples of a set on the device, each below the number of its images.
    Kept {
        set: KeptSet,
        ids: &'a [u32],
        augment: AugmentShape,
    },
    /// Network inputs as they are.
    Values(&'a [f64]),
}

/// A set of images on the device, see [`crate::engine::Engine::keep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSet(usize);

/// Where the images of a slot are, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    Values,
    Pixels(AugmentShape),
    Kept(KeptSet, AugmentShape),
}

/// What a slot holds, as far as a recording depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fed {
    /// Samples, 0 before the first feed.
    pub batch: usize,
    pub place: Place,
}

impl Fed {
    pub fn of(images: &Images, labels: &[i32]) -> Self {
        let place = match *images {
            Images::Values(_) => Place::Values,
            Images::Pixels { augment, .. } => Place::Pixels(augment),
            Images::Kept { set, augment, .. } => Place::Kept(set, AugmentShape { gather: 1, ..augment }),
        };
        Fed {
            batch: labels.len(),
            place,
        }
    }
}

/// Places of one slot.
#[derive(Clone, Copy)]
struct SlotLayout {
    /// In the head: u32, i32 `[largest batch]`.
    ids: Region,
    labels: Region,
    /// Behind it.
    images: Region,
}

#[derive(Clone, Copy)]
pub(crate) struct InputLayout {
    params: Region,
    slots: [SlotLayout; 2],
    /// Parameters, ids and labels.
    head: Region,
    pub bytes: usize,
}

impl InputLayout {
    /// For batches of at most `largest` images of elements of `act` bytes.
    pub fn new(program: &Program, largest: usize, act: usize) -> Self {
        let mut layout = Layout::default();
        let params = layout.push(size_of::<StepParams>());
        let small = [(); 2].map(|()| {
            (
                layout.push(largest * size_of::<u32>()),
                layout.push(largest * size_of::<i32>()),
            )
        });
        let head = Region {
            offset: 0,
            bytes: layout.bytes(),
        };
        let image = program.rows(program.input(), 1).len();
        let slots = small.map(|(ids, labels)| SlotLayout {
            ids,
            labels,
            images: layout.push(largest * image * act),
        });
        InputLayout {
            params,
            slots,
            head,
            bytes: layout.bytes(),
        }
    }

    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        let SlotLayout { ids, labels, images } = self.slots[0];
        [ids, labels, images]
            .map(|region| region.bytes.next_multiple_of(ALIGN))
            .iter()
            .sum()
    }

    /// Bytes of a room for one step whose images take `images` bytes.
    pub fn room(&self, images: usize) -> usize {
        self.head.bytes + images
    }
}

/// The inputs of an engine.
pub(crate) struct Inputs<D: Device> {
    arena: D::Arena,
    layout: InputLayout,
    fed: [Fed; 2],
    /// `[C][256]`: normalised value of every byte.
    table: D::Arena,
    kept: Vec<(D::Arena, usize)>,
}

/// A batch on its way in: images and labels.
pub type Samples<'a> = (Images<'a>, &'a [i32]);

impl<D: Device> Inputs<D> {
    /// `table` holds the table, `arena` the layout.
    pub fn new(arena: D::Arena, layout: InputLayout, table: D::Arena) -> Self {
        Inputs {
            arena,
            layout,
            fed: [Fed {
                batch: 0,
                place: Place::Values,
            }; 2],
            table,
            kept: Vec::new(),
        }
    }

    pub fn layout(&self) -> &InputLayout {
        &self.layout
    }

    pub fn fed(&self, slot: Slot) -> Fed {
        self.fed[slot as usize]
    }

    pub fn labels(&self, slot: Slot) -> Mem<'_, D> {
        let bytes = self.fed(slot).batch * size_of::<i32>();
        self.of(slot).labels.of(&self.arena).slice(0, bytes)
    }

    pub fn params(&self) -> Mem<'_, D> {
        self.layout.params.of(&self.arena)
    }

    fn of(&self, slot: Slot) -> &SlotLayout {
        &self.layout.slots[slot as usize]
    }

    pub fn set_table(&self, device: &D, table: &[D::Real]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        let region = Region {
            offset: 0,
            bytes: bytes.len(),
        };
        device.upload(region.of(&self.table), bytes)
    }

    /// A new set of images in `arena`, which holds `bytes` bytes.
    pub fn keep(&mut self, arena: D::Arena, bytes: usize) -> KeptSet {
        self.kept.push((arena, bytes));
        KeptSet(self.kept.len() - 1)
    }

    pub fn kept(&self, set: KeptSet) -> Mem<'_, D> {
        let (arena, bytes) = &self.kept[set.0];
        Region {
            offset: 0,
            bytes: *bytes,
        }
        .of(arena)
    }

    /// Uploads a batch.
    pub fn feed(&mut self, device: &D, slot: Slot, images: Images, labels: &[i32]) -> Result<()> {
        let put =
            |region: Region, bytes: &[u8]| device.upload(region.of(&self.arena).slice(0, bytes.len()), bytes);
        let places = self.of(slot);
        put(places.labels, bytemuck::cast_slice(labels))?;
        match images {
            Images::Pixels { bytes, ids, .. } => {
                put(places.images, bytes)?;
                put(places.ids, bytemuck::cast_slice(ids))?;
            }
            Images::Kept { ids, .. } => put(places.ids, bytemuck::cast_slice(ids))?,
            Images::Values(values) => {
                let values: Vec<D::Act> = values.iter().map(|&v| D::Act::from_f64(v)).collect();
                put(places.images, bytemuck::cast_slice(&values))?;
            }
        }
        self.fed[slot as usize] = Fed::of(&images, labels);
        Ok(())
    }

    /// Sends everything that a step reads through a room of [`InputLayout::room`] bytes.
    pub fn send(
        &mut self,
        device: &D,
        room: &mut D::Outgoing,
        params: &StepParams,
        batches: &[(Slot, Samples)],
    ) -> Result<()> {
        let mut pieces = vec![self.layout.head.of(&self.arena)];
        let mut behind: Vec<&[u8]> = Vec::new();
        let mut small: Vec<(Region, &[u8])> = vec![(self.layout.params, bytemuck::bytes_of(params))];
        for &(slot, (images, labels)) in batches {
            let places = self.of(slot);
            let ids = match images {
                Images::Pixels { bytes, ids, .. } => {
                    pieces.push(places.images.of(&self.arena).slice(0, bytes.len()));
                    behind.push(bytes);
                    ids
                }
                Images::Kept { ids, .. } => ids,
                Images::Values(_) => return Err(Error::Internal("values cannot be sent".into())),
            };
            small.push((places.ids, bytemuck::cast_slice(ids)));
            small.push((places.labels, bytemuck::cast_slice(labels)));
        }
        device.send(room, &pieces, |out| {
            let (head, mut rest) = out.split_at_mut(self.layout.head.bytes);
            for (region, bytes) in small {
                head[region.offset..region.end()][..bytes.len()].copy_from_slice(bytes);
            }
            for bytes in behind {
                let (place, tail) = rest.split_at_mut(bytes.len());
                place.copy_from_slice(bytes);
                rest = tail;
            }
            Ok(())
        })?;
        for (slot, (images, labels)) in batches {
            self.fed[*slot as usize] = Fed::of(images, labels);
        }
        Ok(())
    }

    /// Brings a slot's images into the network's input.
    pub fn load(&self, device: &D, slot: Slot, input: Mem<D>) -> Result<()> {
        let (places, fed) = (self.of(slot), self.fed(slot));
        let batch = places.images.of(&self.arena);
        let (images, augment) = match fed.place {
            Place::Values => return device.copy(input, batch.slice(0, input.bytes)),
            Place::Pixels(augment) => (batch.slice(0, input.bytes / size_of::<D::Act>()), augment),
            Place::Kept(set, augment) => (self.kept(set), augment),
        };
        let ids = places.ids.of(&self.arena).slice(0, fed.batch * size_of::<u32>());
        let table = Region {
            offset: 0,
            bytes: augment.c as usize * 256 * size_of::<D::Real>(),
        };
        device.augment(augment, input, images, ids, table.of(&self.table), self.params())
    }
}
