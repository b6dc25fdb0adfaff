"""Pictures: one module per topic; every function draws on given axes."""
