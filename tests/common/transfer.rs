//! Transfers that nobody waits for: many of them through few rooms, each piece where it belongs.

use l2b::device::Device;

use super::{fetch_raw, raw, room};

/// Numbers that a transfer in `turn` carries.
fn content(turn: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| turn * 1000 + i).collect()
}

/// More steps than rooms. What step s writes depends on what was sent to it and on what step s − 1 left; the host looks two
/// steps later. Returns what arrived, and what should have.
pub fn pipeline<D: Device>(device: &D) -> (Vec<u32>, Vec<u32>) {
    const LEN: usize = 33;
    const TURNS: u32 = 9;
    let (a, b) = (room(device, 4 * LEN), room(device, 4));
    let log = raw(device, &vec![0u32; TURNS as usize * (LEN + 1)]);
    let bytes = 4 * (LEN + 1);
    let mut outgoing = [(); 3].map(|()| device.outgoing(bytes + 8).expect("room"));
    let mut incoming = [(); 3].map(|()| device.incoming(bytes).expect("room"));
    let mut arrived = Vec::new();
    for turn in 0..TURNS {
        let at = turn as usize % 3;
        if turn >= 3 {
            let got = device.fetched(&mut incoming[at]).expect("fetched");
            arrived.extend(got.chunks_exact(4).map(bytemuck::pod_read_unaligned::<u32>));
        }
        device
            .send(&mut outgoing[at], &[a.mem(), b.mem()], |out| {
                out.copy_from_slice(bytemuck::cast_slice(&content(turn, LEN + 1)));
                Ok(())
            })
            .expect("send");
        let line = log.mem().slice(turn as usize * bytes, bytes);
        device.copy(line.slice(0, 4 * LEN), a.mem()).expect("copy");
        device.copy(line.slice(4 * LEN, 4), b.mem()).expect("copy");
        device.fetch(&mut incoming[at], &[line]).expect("fetch");
    }
    for turn in TURNS..TURNS + 3 {
        let got = device.fetched(&mut incoming[turn as usize % 3]).expect("fetched");
        arrived.extend(got.chunks_exact(4).map(bytemuck::pod_read_unaligned::<u32>));
    }
    let want: Vec<u32> = (0..TURNS).flat_map(|turn| content(turn, LEN + 1)).collect();
    (arrived, want)
}

/// What does not fit a room is refused, and a fill that fails sends nothing.
pub fn refusals<D: Device>(device: &D) {
    let operand = raw(device, &[7u32; 4]);
    let mut outgoing = device.outgoing(12).expect("room");
    let mut incoming = device.incoming(12).expect("room");
    assert!(device.send(&mut outgoing, &[operand.mem()], |_| Ok(())).is_err());
    assert!(device.fetch(&mut incoming, &[operand.mem()]).is_err());
    let failed = device.send(&mut outgoing, &[operand.mem().slice(0, 8)], |out| {
        out.fill(1);
        Err(l2b::Error::Internal("on purpose".into()))
    });
    assert!(failed.is_err_and(|error| error.to_string().contains("on purpose")));
    assert_eq!(fetch_raw::<D, u32>(device, &operand), [7; 4]);
}
