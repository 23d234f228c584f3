"""Where items come from: packages with pinned content, files that lie here, and what training has seen."""
