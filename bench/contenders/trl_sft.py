"""TRL: what SFTTrainer does to a data set of `messages` under assistant_only_loss."""

import task
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

# ChatML, marked as TRL needs it: what is between the marks is trained.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    job = task.read()
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    tokenizer.chat_template = CHATML
    trainer = make_trainer(job, tokenizer)
    began = task.now()
    rows = load_dataset("json", data_files=job.rows, split="train")
    encoded = trainer._prepare_dataset(
        rows, tokenizer, trainer.args, packing=False, formatting_func=None, dataset_name="train"
    )
    task.answer(job, began, encoded)


def make_trainer(job: task.Task, tokenizer) -> SFTTrainer:
    """A trainer of a model of next to no size: it reads and changes the template as always."""
    from datasets import Dataset

    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    arguments = SFTConfig(
        output_dir=job.folder, assistant_only_loss=True, dataset_num_proc=job.num_processes,
        max_length=job.max_length, report_to="none", use_cpu=True, bf16=False,
    )  # fmt: skip
    return SFTTrainer(
        LlamaForCausalLM(tiny), arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": turns}]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
