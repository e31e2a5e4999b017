"""Exchange with other libraries, without copying blocks; each is imported only when it is used."""
