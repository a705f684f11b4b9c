"""What published claims are held against: networks, measurements, tests, and the page that says what came of them."""
