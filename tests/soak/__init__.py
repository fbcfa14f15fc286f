"""Programs that look for defects for as long as they are let, apart from the tests."""
