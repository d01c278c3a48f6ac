//! Every random draw of the project: Philox4x32-10, a pure function of (key, counter), and keyed streams on top.
//! `kernels/philox.cuh` repeats this file bit for bit, so a draw does not depend on the device, on the number of
//! threads or on what was drawn before.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//!
//! # Layout
//!
//! A [`Stream`] is an endless sequence of 32-bit words named by (seed, purpose, view, index, time):
//!
//! | word | holds |
//! |---|---|
//! | `key[0]` | low 32 bits of the seed |
//! | `key[1]` | high 32 bits of the seed |
//! | `counter[0]` | index: sample id, class, parameter number; 0 where there is one stream per time |
//! | `counter[1]` | `purpose << 16 \| view`; purpose in 1..=65535, view in 0..=65535 |
//! | `counter[2]` | time: epoch for the order of the train samples, pass for stratified clean images, else step; 0 for draws made once |
//! | `counter[3]` | block number b, from 0 |
//!
//! Word number t of a stream is lane `t % 4` of `philox(counter with b = t / 4, key)`; all arithmetic wraps at 32 bits.
//!
//! # Draws
//!
//! | draw | words used | value |
//! |---|---|---|
//! | [`Stream::word`] | 1 | the word w |
//! | [`Stream::below`] k | 1 | `(w · k) >> 32` in 64-bit arithmetic: an integer in [0, k); each has probability 1/k within 2⁻³² |
//! | [`Stream::uniform_f64`] | 2 | first word high, second low: `((w₀·2³² + w₁) >> 11) · 2⁻⁵³`, in [0, 1) |
//! | [`Stream::choose`] n, m | min(m, n−1) | Fisher–Yates from the front, one word per place |

/// What a draw is for. The numbers are part of every result that a seed reproduces: append, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial parameters; index = parameter number.
    Init = 1,
    /// Clean images taken out of train; index = class.
    Split = 2,
    /// Label noise; index = sample id. The fixed targets of `flip` and `flip2`: seed 1, index = class, view 1.
    Noise = 3,
    /// Order of the train samples; time = epoch.
    Order = 4,
    /// Meta batch; time = step. Stratified: time = pass through the clean images; view 1 where it starts.
    MetaDraw = 5,
    /// Crop offsets; index = sample id, time = step.
    Crop = 6,
    /// Horizontal flip; index = sample id, time = step.
    Flip = 7,
}

/// `view` of train samples. Views tell apart draws for one sample at one time.
pub const TRAIN_VIEW: u16 = 0;
/// First `view` of meta samples: a meta sample never shares its draws with the train sample of the same id.
pub const META_VIEW: u16 = 256;

/// Philox4x32-10: 128 random bits for each (counter, key).
///
/// Each of the ten rounds multiplies words 0 and 2, crosses the halves of the products and adds the round key, which
/// moves on by the golden ratio and √3 − 1.
pub const fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let p0 = 0xD251_1F53_u64 * c0 as u64;
        let p1 = 0xCD9E_8D57_u64 * c2 as u64;
        c0 = (p1 >> 32) as u32 ^ c1 ^ k0;
        c1 = p1 as u32;
        c2 = (p0 >> 32) as u32 ^ c3 ^ k1;
        c3 = p0 as u32;
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// A named sequence of random words; see the module text for its layout.
///
/// ```
/// use l2b::random::{Purpose, Stream};
/// let mut a = Stream::new(7, Purpose::Crop).index(42).time(3);
/// let mut b = Stream::new(7, Purpose::Crop).index(42).time(3);
/// assert_eq!((a.below(9), a.below(9)), (b.below(9), b.below(9)));
/// ```
#[derive(Clone, Debug)]
pub struct Stream {
    counter: [u32; 4],
    key: [u32; 2],
    block: [u32; 4],
    lane: usize,
}

impl Stream {
    /// The stream of a purpose at index 0, view 0, time 0.
    pub const fn new(seed: u64, purpose: Purpose) -> Self {
        Stream {
            counter: [0, (purpose as u32) << 16, 0, 0],
            key: [seed as u32, (seed >> 32) as u32],
            block: [0; 4],
            lane: 4,
        }
    }

    /// The same stream for one sample, class or parameter. Set names before the first draw.
    pub const fn index(mut self, index: u32) -> Self {
        self.counter[0] = index;
        self
    }

    /// The same stream for another view.
    pub const fn view(mut self, view: u16) -> Self {
        self.counter[1] = (self.counter[1] & 0xFFFF_0000) | view as u32;
        self
    }

    /// The same stream at an epoch or step.
    pub const fn time(mut self, time: u32) -> Self {
        self.counter[2] = time;
        self
    }

    /// The next 32-bit word.
    pub const fn word(&mut self) -> u32 {
        if self.lane == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[3] = self.counter[3].wrapping_add(1);
            self.lane = 0;
        }
        let word = self.block[self.lane];
        self.lane += 1;
        word
    }

    /// An integer in [0, k); 0 for k = 0.
    pub const fn below(&mut self, k: u32) -> u32 {
        ((self.word() as u64 * k as u64) >> 32) as u32
    }

    /// A float in [0, 1) on a grid of 2⁻⁵³.
    pub const fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (self.word() as u64, self.word() as u64);
        (((high << 32) | low) >> 11) as f64 / 9_007_199_254_740_992.0
    }

    /// `m` different numbers out of 0..n in random order, each ordered choice equally likely; a shuffle for m = n.
    /// For place i = 0, 1, …: swap places i and `i + below(n − i)`; the first m places are the result.
    ///
    /// `m` above `n` counts as `n`.
    pub fn choose(&mut self, n: u32, m: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..n).collect();
        let m = m.min(n);
        // The last place of a full shuffle has no choice left and costs no word.
        for i in 0..m.min(n.saturating_sub(1)) {
            let j = i + self.below(n - i);
            numbers.swap(i as usize, j as usize);
        }
        numbers.truncate(m as usize);
        numbers
    }
}

/// A permutation of 0..n: a pure function of (seed, purpose, time).
pub fn shuffle(seed: u64, purpose: Purpose, time: u32, n: u32) -> Vec<u32> {
    Stream::new(seed, purpose).time(time).choose(n, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's published vectors for philox4x32 with 10 rounds: zeros, ones, digits of π.
    #[test]
    fn known_answers() {
        let zero = philox([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox(
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
        );
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    /// Values of an independent implementation in another language; `philox.cuh` must give the same.
    #[test]
    fn fixed_streams() {
        let crop = Stream::new(0x0123_4567_89AB_CDEF, Purpose::Crop)
            .index(1234)
            .view(3)
            .time(56);
        let mut s = crop.clone();
        assert_eq!(
            [(); 6].map(|()| s.word()),
            [
                0xec881ac3, 0x630a1c3e, 0x47b9fd69, 0xdca95406, 0x5790b361, 0xf3a66a14
            ]
        );
        let mut s = crop.clone();
        assert_eq!([(); 6].map(|()| s.below(9)), [8, 3, 2, 7, 3, 8]);
        assert_eq!(crop.clone().uniform_f64().to_bits(), 0x3fed_9103_586c_6143);
        assert_eq!(
            shuffle(5, Purpose::Order, 2, 12),
            [4, 8, 1, 5, 7, 3, 2, 10, 11, 0, 9, 6]
        );
    }

    #[test]
    fn names_are_distinct() {
        let base = Stream::new(1, Purpose::Flip);
        let others = [
            Stream::new(2, Purpose::Flip),
            Stream::new((1 << 32) + 1, Purpose::Flip),
            Stream::new(1, Purpose::Crop),
            base.clone().index(1),
            base.clone().view(1),
            base.clone().time(1),
        ];
        let mut firsts: Vec<u32> = others.into_iter().map(|mut s| s.word()).collect();
        firsts.push(base.clone().word());
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 7);
    }

    #[test]
    fn choose_is_a_uniform_subset() {
        for (n, m) in [(0, 0), (0, 3), (1, 1), (5, 0), (5, 5), (5, 9), (1000, 7)] {
            let chosen = Stream::new(3, Purpose::MetaDraw).choose(n, m);
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), n.min(m) as usize, "{n} {m}");
            assert!(sorted.iter().all(|&i| i < n));
        }
        // Every place of a shuffle of 6 holds every number equally often: 36 counts, mean 2000, σ = 40.8; 5σ.
        let mut counts = [[0u32; 6]; 6];
        for time in 0..12_000 {
            for (place, &number) in shuffle(11, Purpose::Order, time, 6).iter().enumerate() {
                counts[place][number as usize] += 1;
            }
        }
        for count in counts.as_flattened() {
            assert!((1796..=2204).contains(count), "{counts:?}");
        }
    }

    #[test]
    fn uniform_is_uniform() {
        let mut s = Stream::new(9, Purpose::Noise);
        let n = 100_000;
        let mut bins = [0u32; 10];
        let mut sum = 0.0;
        for _ in 0..n {
            let u = s.uniform_f64();
            assert!((0.0..1.0).contains(&u));
            sum += u;
            bins[s.below(10) as usize] += 1;
        }
        // Mean ½ with σ = 1/√(12 n) = 9.1e-4; bins 10 000 with σ = 94.9; both at 5σ.
        assert!((sum / f64::from(n) - 0.5).abs() < 4.6e-3);
        assert!(bins.iter().all(|b| (9526..=10474).contains(b)), "{bins:?}");
    }
}
