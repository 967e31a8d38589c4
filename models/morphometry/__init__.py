"""Age as a weighted sum of modulated tissue: the linear map, on three maps in place of one."""
