"""The steps of each paper's protocol, called by its notebook."""
