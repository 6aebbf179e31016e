"""One adapter a foreign library, which is imported when its adapter is used and not before."""
