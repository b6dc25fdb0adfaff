"""Pictures: one module a topic; every function draws on given axes and returns them."""
