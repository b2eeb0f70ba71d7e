//! Copies through page-locked memory, which go on while the host does. The device is the emulator, or a card where `TANDEM_TEST_DEVICE=cuda`
//! says so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::device;
use tandem_cuda::Outbox;

#[test]
fn copies_are_in_the_order_in_which_they_were_asked_for() {
    let device = device();
    let buffer = device.allocate_with(&[1; 64]).unwrap();
    let mut content = device.pin(64).unwrap();
    assert!(content.iter().all(|byte| *byte == 0), "what was not written is zeros");
    content[..4].copy_from_slice(&[9, 8, 7, 6]);
    let written = buffer.write_later(10, content, 4).unwrap();
    let read = buffer.read_later(8, device.pin(8).unwrap(), 7).unwrap();
    let after = buffer.write_later(0, device.pin(64).unwrap(), 64).unwrap();
    assert_eq!(read.wait().unwrap()[..], [1, 1, 9, 8, 7, 6, 1, 0]);
    assert_eq!(written.wait().unwrap()[..4], [9, 8, 7, 6]);
    // Nobody keeps it: it is waited for all the same.
    drop(after);
    let mut all = [1; 64];
    buffer.read(0, &mut all).unwrap();
    assert_eq!(all, [0; 64]);
}

#[test]
fn what_is_told_again_and_again_arrives_each_time() {
    let device = device();
    let mut outbox = Outbox::new(&device, 1 << 20).unwrap();
    let buffer = device.allocate(1 << 20).unwrap();
    let mut readers = Vec::new();
    for round in 0..8_u8 {
        let bytes = (1 << 20) - usize::from(round);
        outbox.send(&buffer, bytes, |piece| piece.fill(round)).unwrap();
        readers.push(buffer.read_later(0, device.pin(1 << 20).unwrap(), 1 << 20).unwrap());
    }
    for (round, reader) in (0..8_u8).zip(readers) {
        let read = reader.wait().unwrap();
        let own = (1 << 20) - usize::from(round);
        assert!(read[..own].iter().all(|byte| *byte == round), "round {round}");
        assert!(round == 0 || read[own..].iter().all(|byte| *byte < round), "and what was told before it behind");
    }
}

#[test]
#[should_panic(expected = "5 of 4 bytes")]
fn no_more_is_copied_than_there_is() {
    let device = device();
    let buffer = device.allocate(64).unwrap();
    let _ = buffer.write_later(0, device.pin(4).unwrap(), 5);
}

#[test]
#[should_panic(expected = "an operand of 4 bytes")]
fn nothing_is_copied_beyond_the_end() {
    let device = device();
    let buffer = device.allocate(64).unwrap();
    let _ = buffer.read_later(61, device.pin(4).unwrap(), 4);
}
