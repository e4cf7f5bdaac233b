//! Power fails under the journal and the intent map: what was not flushed is lost or torn, sector by sector.

mod intent;
mod journal;
mod lossy;
