//! Power fails under the journal, the maps and the stamp: what was not flushed is lost or torn, sector by sector.

mod intent;
mod journal;
mod lossy;
mod presence;
mod stamp;
