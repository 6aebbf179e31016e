"""Maps from a walk and a surface to a measurement. Add a file to add one."""
