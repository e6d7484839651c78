use crate::data::Result;
pub fn point(_name: &str) -> Result<()> {
    Ok(())
}
