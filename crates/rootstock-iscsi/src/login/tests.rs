//! A login from both sides.
