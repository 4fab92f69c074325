"""SGD-JSCC: semantics-guided diffusion as the denoiser of a deep joint source-channel code for images."""
