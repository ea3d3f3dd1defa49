//! Sessions fed with PDUs.
