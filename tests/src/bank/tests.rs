use super::check::{Acknowledged, Findings, verify};
use super::wire::{QueryAnswer, ServerMessage, first_message};
use proptest::prelude::*;
use std::convert::Infallible;

/// A message of the server, as its manual says.
fn encoded(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((body.len() as i32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn encoded_row(columns: &[Option<String>]) -> Vec<u8> {
    let mut body = (columns.len() as u16).to_be_bytes().to_vec();
    for column in columns {
        body.extend(column.as_ref().map_or(-1, |text| text.len() as i32).to_be_bytes());
        body.extend(column.iter().flat_map(|text| text.bytes()));
    }
    encoded(b'D', &body)
}

proptest! {
    #[test]
    fn no_bytes_crash_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in r"[RDCEZS]") {
        for received in [bytes.clone(), encoded(kind.as_bytes()[0], &bytes)] {
            if let Ok(Some((_, taken))) = first_message(&received) {
                prop_assert!((5..=received.len()).contains(&taken));
            }
        }
    }

    #[test]
    fn a_row_is_read_as_it_was_sent_and_not_before_it_is_whole(
        columns in proptest::collection::vec(proptest::option::of(".{0,20}"), 0..6),
        behind in proptest::collection::vec(any::<u8>(), 0..10),
    ) {
        let sent = encoded_row(&columns);
        for part in 0..sent.len() {
            prop_assert!(first_message(&sent[..part]).unwrap().is_none());
        }
        let read = first_message(&[&sent[..], &behind].concat()).unwrap();
        prop_assert_eq!(read, Some((ServerMessage::Row(columns), sent.len())));
    }
}

#[test]
fn what_no_server_sends_is_refused() {
    for length in [-1_i32, 0, 3, i32::MAX] {
        let bytes = [&[b'Z'][..], &length.to_be_bytes(), &[0; 8]].concat();
        assert!(first_message(&bytes).is_err(), "{length}");
    }
    // A column that is longer than its row, and bytes behind the last one.
    assert!(first_message(&encoded(b'D', &[0, 1, 0, 0, 0, 9, b'x'])).is_err());
    assert!(first_message(&encoded(b'D', &[0, 0, 1])).is_err());
}

#[test]
fn an_error_says_its_state_and_text() {
    let read = first_message(&encoded(b'E', b"SERROR\0VERROR\0C42P01\0Mno such table\0\0")).unwrap();
    assert_eq!(read.unwrap().0, ServerMessage::Error("42P01 no such table".to_owned()));
}

/// A database whose history has these rows (client, rows, different ones, last) and whose sums are these.
fn found(history: &[[&str; 4]], sums: [&str; 4], damage: &[&str]) -> Findings {
    let row = |texts: &[&str]| texts.iter().map(|text| Some((*text).to_owned())).collect();
    let acknowledged =
        [("one", 7), ("two", 3)].map(|(client, number)| Acknowledged { client: client.to_owned(), number });
    verify(&acknowledged, |sql| {
        let rows = match sql {
            _ if sql.contains("split_part") => history.iter().map(|texts| row(texts)).collect(),
            _ if sql.contains("sum(abalance)") => vec![row(&sums)],
            _ if sql.contains("verify_heapam") => damage.iter().map(|text| row(&[text])).collect(),
            _ => vec![row(&["12"])],
        };
        Ok::<_, Infallible>(QueryAnswer { rows, tag: "SELECT 1".to_owned(), error: None })
    })
    .unwrap()
}

const EVEN: [&str; 4] = ["-12"; 4];

#[test]
fn a_history_with_each_acknowledged_transaction_once_is_whole() {
    let others = ["three", "1", "1", "1"];
    assert_eq!(
        found(&[["one", "7", "7", "7"], ["two", "3", "3", "3"], others], EVEN, &[]),
        Findings::default()
    );
    // The last one was committed, and its answer lost.
    assert_eq!(found(&[["one", "8", "8", "8"], ["two", "3", "3", "3"]], EVEN, &[]), Findings::default());
}

#[test]
fn acknowledged_transactions_that_are_gone_are_counted() {
    let two = ["two", "3", "3", "3"];
    assert_eq!(found(&[["one", "5", "5", "5"], two], EVEN, &[]).lost, 2);
    assert_eq!(found(&[["one", "6", "6", "7"], two], EVEN, &[]).lost, 1);
    assert_eq!(found(&[["one", "7", "7", "8"], two], EVEN, &[]).lost, 1);
    assert_eq!(found(&[two], EVEN, &[]).lost, 7);
}

#[test]
fn what_else_is_wrong_is_said() {
    let whole = [["one", "7", "7", "7"], ["two", "3", "3", "3"]];
    for (findings, says) in [
        (found(&[["one", "8", "7", "7"], whole[1]], EVEN, &[]), "1 transactions of one are twice"),
        (found(&[["one", "9", "9", "9"], whole[1]], EVEN, &[]), "one ended with 7, and 9"),
        (found(&whole, ["1", "1", "2", "1"], &[]), "the sums"),
        (found(&whole, EVEN, &["broken page"]), "broken page"),
    ] {
        assert_eq!(findings.wrong.len(), 1, "{findings:?}");
        assert!(findings.wrong[0].contains(says), "{findings:?}");
    }
}
