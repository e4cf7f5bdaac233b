//! What must be true of the database: the history has each acknowledged transaction once, the sums agree, and
//! PostgreSQL's own check of tables and indexes (amcheck) finds nothing.

use super::wire::QueryAnswer;

/// Transactions that a client was acknowledged, by its mark in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Begins the `filler` of each of its rows; their number follows, behind a `-`.
    pub client: String,
    /// Numbers 1 to this.
    pub number: u64,
}

/// What the checks have found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged transactions that are not in the history.
    pub lost: u64,
    /// All else, in words.
    pub wrong: Vec<String>,
}

/// How often each client is in the history: number of rows, of different numbers among them, and the largest.
const HISTORY: &str = "SELECT split_part(filler, '-', 1), count(*), count(DISTINCT filler), \
     max(split_part(filler, '-', 2)::bigint) FROM pgbench_history GROUP BY 1";
/// pgbench's invariant: each transaction has changed all four by the same amount.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
     (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), \
     (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
/// Every table that pages are kept of, against its rules and its TOAST table.
const TABLES: &str = "SELECT c.relname, v.blkno, v.msg FROM pg_class c, \
     LATERAL verify_heapam(c.oid, check_toast => true) v \
     WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' LIMIT 5";
/// Every B-tree, against its rules and its table.
const INDEXES: &str = "SELECT count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
     WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'";

/// Asks all of it. `acknowledged` are all clients that ever were; a transaction whose COMMIT was not answered may be in
/// the history as well, as the one behind the last.
pub fn verify<E>(
    acknowledged: &[Acknowledged],
    mut ask: impl FnMut(&str) -> Result<QueryAnswer, E>,
) -> Result<Findings, E> {
    let mut findings = Findings::default();
    let answer = ask(HISTORY)?;
    findings.failed("the history", &answer);
    for client in acknowledged {
        findings.history(client, &answer.rows);
    }
    let answer = ask(SUMS)?;
    findings.failed("the sums", &answer);
    match answer.rows.as_slice() {
        [sums] if sums.len() == 4 && sums.windows(2).all(|two| two[0].is_some() && two[0] == two[1]) => {}
        rows => {
            findings.wrong.push(format!("the sums of accounts, tellers, branches, history differ: {rows:?}"))
        }
    }
    for (what, sql) in [("the tables", TABLES), ("the indexes", INDEXES)] {
        let answer = ask(sql)?;
        findings.failed(what, &answer);
        if what == "the tables" {
            findings.wrong.extend(answer.rows.iter().map(|row| format!("amcheck: {row:?}")));
        }
    }
    Ok(findings)
}

impl Findings {
    fn failed(&mut self, what: &str, answer: &QueryAnswer) {
        self.wrong.extend(answer.error.iter().map(|error| format!("{what}: {error}")));
    }

    fn history(&mut self, acknowledged: &Acknowledged, rows: &[Vec<Option<String>>]) {
        let Acknowledged { client, number } = acknowledged;
        let is_its =
            |row: &&Vec<Option<String>>| row.first().is_some_and(|name| name.as_deref() == Some(client));
        let figure = |row: &Vec<Option<String>>, at: usize| row.get(at)?.as_ref()?.parse().ok();
        let row = rows.iter().find(is_its);
        let [count, distinct, last] =
            [1, 2, 3].map(|at| row.and_then(|row| figure(row, at)).unwrap_or(0_u64));
        // One that was not acknowledged is not among those that were.
        let unanswered = u64::from(last == number + 1);
        self.lost += number.saturating_sub(distinct - unanswered.min(distinct));
        if count != distinct {
            self.wrong
                .push(format!("{} transactions of {client} are twice in the history", count - distinct));
        }
        if last > number + 1 {
            self.wrong.push(format!("{client} ended with {number}, and {last} is in the history"));
        }
    }
}
