# Fine-tune a pretrained GPT-2 on your own documents (downloads 124.4M parameters).
#   python prepare.py --input=my_texts/ --name=mine --tokenizer=gpt2
#   python train.py config/finetune.py --dataset=mine
# Any GPT-2 or Qwen3 works, e.g. --init_from=Qwen/Qwen3-0.6B-Base with the same name as --tokenizer.
# The shape comes from the weights; you can reduce block_size. A micro-batch of 16 sequences takes
# 5.0 GB; on two CPU cores a step takes 13 to 25 s.
init_from = 'gpt2'
out_dir = 'out/finetune'
block_size = 256                    # shorter than GPT-2's 1,024, to save memory
learning_rate = 3e-5                # small and constant, so that the model keeps what it knows
min_lr = 3e-5
warmup_iters = 20
max_iters = 200
eval_interval = 50
