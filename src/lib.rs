//! Thalweg
