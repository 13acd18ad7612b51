"""What keeps the record honest: seals and their trees, verification, erasure, backups, the auditor's bundle."""
