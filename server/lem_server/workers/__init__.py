"""Workers: registration, what is known of them, drain and sign-off."""
