"""Who takes part: accounts, sessions, studies of other platforms, consent and care, standing, own records."""
