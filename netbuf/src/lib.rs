//! ft-netbuf: output commit. Holds what the VM sends until the checkpoint that covers it is acked.
