//! The target against an initiator made by hand.
