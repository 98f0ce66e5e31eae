//! An eBPF object → the same without what only debuggers read, which is most of it: nobody loads that, and the agent would carry it.

use object::build::Error;
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Takes the DWARF sections out. Types and lines that the kernel reads (BTF) stay.
pub fn without_dwarf(object: &[u8]) -> Result<Vec<u8>, Error> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        section.delete = section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps all names in one section, the writer those of sections in their own.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes)?;
    Ok(bytes)
}
