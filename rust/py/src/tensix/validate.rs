//! Published measurements run as programs.
