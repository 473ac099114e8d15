"""A whole system on loopback: S3, a MEC node, a cloud stand-in. For `dev`, `demo` and the tests."""
