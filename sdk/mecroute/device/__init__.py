"""What is known of the machine the SDK runs on."""
