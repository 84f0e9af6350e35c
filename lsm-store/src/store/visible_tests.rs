//! Beside the file it tests, which is also compiled against a model checker (`tests/visible_model.rs`).

use super::visible::{Visible, VisibleCell};
use crate::types::{MAX_EXTRA_BYTES, Position};

#[test]
fn what_was_published_last_is_read_whole_with_an_extra_of_any_length() {
    let visible = |n: u64, extra: Vec<u8>| Visible {
        position: Position { index: n, term: n / 2, extra },
        sequences: vec![n, n + 100],
    };
    let first = visible(7, vec![1, 2, 3]);
    let cell = VisibleCell::new(&first);
    assert_eq!(cell.load(), first, "as made");
    for len in [0, 1, 7, 8, 9, 255, MAX_EXTRA_BYTES, 3] {
        let next = visible(8 + len as u64, (0..=u8::MAX).take(len).collect());
        cell.publish(&next.position, &next.sequences);
        assert_eq!(cell.load(), next, "an extra of {len} bytes");
        assert_eq!(cell.index(), next.position.index, "the index alone");
        assert_eq!(cell.sequence(1), next.sequence(1), "one partition alone");
        assert_eq!(cell.sequence(2), 0, "an unknown partition");
    }
}
