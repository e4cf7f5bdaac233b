//! Every answer's time and round trip, written to a file as the run goes: for figures of a part of a run, and for the
//! moment of one answer.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The file, if one is wanted. After the first failure nothing more is written to it, and the failure is kept.
pub struct Trace {
    file: Option<BufWriter<File>>,
    /// The failure.
    pub error: Option<String>,
}

impl Trace {
    /// Begins a new file.
    pub fn new(path: Option<&Path>) -> Self {
        let mut trace = Self { file: None, error: None };
        match path.map(File::create) {
            Some(Ok(file)) => trace.file = Some(BufWriter::new(file)),
            Some(Err(error)) => trace.error = Some(error.to_string()),
            None => {}
        }
        trace
    }

    /// An answer came now.
    pub fn answered(&mut self, rtt: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.write(|file| writeln!(file, "{} {}", now.as_micros(), rtt.as_micros()));
    }

    /// Lets readers see what was written.
    pub fn flush(&mut self) {
        self.write(BufWriter::flush);
    }

    fn write(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = write(file) {
            self.file = None;
            self.error = Some(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_in_the_file_in_order_once_flushed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let mut trace = Trace::new(Some(&path));
        trace.answered(Duration::from_micros(250));
        trace.answered(Duration::from_millis(3));
        trace.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Vec<u128>> =
            text.lines().map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect()).collect();
        assert_eq!(rows.iter().map(|row| row[1]).collect::<Vec<_>>(), [250, 3000]);
        assert!(rows[0][0] <= rows[1][0]);
    }

    #[test]
    fn a_trace_that_cannot_be_written_says_so() {
        let mut trace = Trace::new(Some(Path::new("/nowhere/trace")));
        trace.answered(Duration::ZERO);
        trace.flush();
        assert!(trace.error.is_some());
    }
}
