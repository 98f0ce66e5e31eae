//! Configuration text → validated [`Config`], or every error with its line and path.

mod model;

pub use model::*;
