"""Training rows that give evaluation rows away: found by several kinds of evidence, with the places that match."""
