//! ft-checkpoint: from a captured epoch to a sealed checkpoint on the backup.
