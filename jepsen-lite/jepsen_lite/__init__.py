"""jepsen-lite: breaks the store on purpose, and judges what it did."""
