//! Whole nodes, from outside: one program, so that it is linked once.

mod clients;
mod cluster;
mod ends;
mod strangers;
