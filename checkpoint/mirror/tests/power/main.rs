//! Power fails under the journal, the intent map and the stamp: what was not flushed is lost or torn, sector by sector.

mod intent;
mod journal;
mod lossy;
mod stamp;
