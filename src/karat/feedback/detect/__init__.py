"""Which raters a person should look at: detectors of habits, rings, triggers, sybils and outsourced answers."""
