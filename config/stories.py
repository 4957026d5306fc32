# A story model from scratch: 0.8M parameters, 4 minutes on two CPU cores. `make demo` runs this.
#   python prepare.py
#   python train.py config/stories.py
out_dir = 'out/stories'
n_layer = 2
block_size = 160                    # stories average about 120 tokens
tie_weights = False                 # so that the output matrix has its own learning rate
fused_attention = False             # attend() is faster on a CPU
learning_rate = 2.5e-3
min_lr = 0.0
output_lr_scale = 20.0              # high, to match the grammar's word probabilities precisely
warmup_iters = 50
max_iters = 3400
batch_size = 12
eval_interval = 850
