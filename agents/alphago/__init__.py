"""AlphaGo's stages in miniature (Silver et al. 2016): what each learns from, learns, and leaves in a folder."""
