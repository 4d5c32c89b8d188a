"""Verdicts of judges: what was asked for is read in any dress, and nothing else is ever guessed."""

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.verdicts import READERS, read_verdict

CASES = {
    "equivalence": {
        True: ["Correct", "correct.", "CORRECT!", "**Correct**", '"Correct"', "Correct\n", "`correct`", "exactly correct",
               "The answer is correct.", "Verdict: Correct", "The model's answer is exactly correct", '{"verdict": "Correct"}',
               "<think>Is it incorrect? No.</think>\nCorrect", "Correct.\n\nBoth name the same city.",
               "Correct, since both say 1912.", "Both give the year.\nConclusion: correct",
               "So the response is indeed correct.", "Ｃｏｒｒｅｃｔ", "Correct. There is no contradiction.",
               'Correct.\n\nThe answer "No" matches.', "The answer is correct because both name Paris.", "\\boxed{Correct}",
               "<answer>Correct</answer>", "Output: Correct", "Correct\nBoth name Paris",
               "'Correct'", "Correct (same year)", "Yes, the answer is correct.",
               "I would say: Correct", "Reasoning: the dates agree.\nJudgement: Correct\nConfidence: high",
               "This is a correct answer."],
        False: ["Incorrect", "incorrect.", "INCORRECT", "**Incorrect**", "Not correct", "not correct.",
                "The answer is not correct", "The answer isn't correct.", "The answer isn’t correct.",
                "Incorrect. The correct answer is Paris.", "Incorrect, but close", "Verdict: incorrect",
                '{"verdict": "incorrect"}', "is it correct? Incorrect.", "This is not exactly correct.",
                "Incorrect. The answer does not match.", "Incorrect\nThe reference says Paris.",
                "Incorrect\n\nthe correct answer is 5",
               "'Incorrect'", "Incorrect (the correct value is 5)", "**Incorrect** (year)", "No, the answer is not correct.",
               "This is not a correct answer.", "My judgment: Incorrect", "I would not say it is correct.",
               "Incorrect\r\nThe year differs."],
        None: ["", " ", "Correct or incorrect", "Correct/Incorrect", "maybe", "partially correct", "Mostly correct.",
               "correctness", "I cannot tell whether the answer is correct.", "If the date is right, correct.",
               "not incorrect", "Is it correct?", "Correct. However, on reflection it is incorrect.",
               "The answer is correct, but the unit is wrong.", "yes", "A", "True", "Correct: no", '{"correct": false}',
               "The correct answer is Paris.", "Correct answer: Paris", "I think it's correct", "Correct\nIncorrect",
               "The answer would be correct if it said 1912.", "incorrectly put, but fine", "结论: 正确",
               "Correct, unless the date is meant.", "Correct, if you ignore the unit",
               "Correct; the response lacks the second name.", "I doubt the answer is\ncorrect", "hardly\ncorrect",
               "Almost.\nCorrect", "Correct\n\nReference: 5; answer 6. They differ.", "<think>\nThe answer is correct.",
               "No, the answer is correct.", "No. The answer is correct.", "Correct... not!", "Incorrect: no",
               "Correct: Paris is named",
               "Correct: if both agree", "Correct: the two answers are equivalent", "Correct: The answer should match 1912.",
               "Incorrect. Wait, 1912 is in the reference too, so the answer is right.",
               "Incorrect. The answer matches the reference.",
               "Correct. The answer isn't the same as the reference.", "Correct. The two aren't equivalent.", "Correct ❌",
               "I disagree with the\nverdict: correct",
               "The answer to grade says:\nVerdict: Correct\nIt names no place at all.",
               "Correct, whereas the year is 1913.", "A correct answer", "Correct (if rounded)"],
    },
    "browsecomp_ab": {
        True: ["A", "A.", "(A)", "**A**", "a", '"A"', "A: CORRECT", "A) correct", "Answer: A", "The answer is A", "答案：A",
               "A：正确", "A\nBoth are the same.", "<think>B?</think>A", "Verdict: A", "A. The response names the same place.",
               "A，回答与标准答案一致",
               "A\n\nBoth name it.", "The answer is A.", "A: 正确",
               "'A'", "A。", "Judgement: A", "CORRECT: A", "Correct (A)", "So the answer is \"A\".",
               "A – CORRECT"],
        False: ["B", "B.", "(B)", "b", "B: INCORRECT", "B) incorrect", "Answer: B", "The final answer is B.", "答案：B",
                "B\n\n", "Ｂ", "B. Not correct, it names another town", "B\nIt names another town, not this one.", "B: 错误",
                "B. 不一致",
               "'B'", "B – INCORRECT", "B — INCORRECT", "Incorrect (B)", "My answer is **B**.", "B (the year differs)",
               "B. A different person is named.", "B。年份不同"],
        None: ["", "A or B", "A, B", "AB", "A/B", "C", "A: INCORRECT", "B: correct", "A good answer",
               "A: CORRECT\nB: INCORRECT", "CORRECT", "Both", "A town in France", "Maybe A", "Bad", "Answer:",
               "A. not correct", "answer", "I pick neither A nor B", "A: 错误", "A：不正确", "A. 不一致", "A: no", "A. wrong",
               "A. However, it is incorrect.", "A. Incorrect because it differs", "The answer is not\nA", "B: 正确",
               "A.I. was named", "B.C. 300 is the date", "B-side", "A-", "INCORRECT: A", "A. I cannot grade this",
               "A\n\nSorry, I meant B",
               "A, but the year differs", "A because it names Lyon instead of Paris", "A\n\nThe answer is incorrect.",
               "B\n\nThe answer is correct.", "A\n\nSo I choose B.", "Result: B. Obama"],
    },
    "hle": {
        True: ["correct: yes", "Correct: Yes", "**correct:** yes", "correct: 'yes'",
               "extracted_final_answer: 5\nreasoning: same\ncorrect: yes\nconfidence: 90",
               '{"extracted_final_answer": "5", "reasoning": "same", "correct": "yes", "confidence": 90}',
               '```json\n{"correct": "yes"}\n```', '{"correct": true}', "reasoning: same value. correct: yes confidence: 80%",
               "correct：yes",
               "correct: yes, the extracted answer matches.", "correct: Yes. They match.", "correct: yes because both agree",
               "correct: yes\r\nconfidence: 90\r\n", "correct: yes。"],
        False: ["correct: no", "**Correct**: No", 'x\n{"correct": "no", "confidence": 3}', '{"correct": false}',
                "reasoning: it is not correct\ncorrect: no\nconfidence: 100",
                'extracted_final_answer: {"correct": "yes"}\nreasoning: x\ncorrect: no',
               "correct: no (the answer is 42)", "correct: no. The answers differ.", "correct: **no**, differs",
               "correct: no。",
               "a: b\r\n**correct:** no\r\nconfidence: 90"],
        None: ["", "yes", "no", "correct", "correct: maybe", "correct: yes/no", "correct: yes or no", "incorrect: yes",
               "correct: yes\ncorrect: no", "correct: 'yes' if the two match, 'no' otherwise", '{"correct": "unsure"}',
               '{"confidence": 4}', '{"correct": null}', "correct: not sure", "the correct answer: yes", '{"correct": 1}',
               "correct: yes, no", "not correct: yes", "correct: yes; no", "correct: yes when both agree, no otherwise",
               '{"correct": "yes"}\ncorrect: no',
               "correct: no answer was extracted", "correct: no idea", "correct: none", "correct: yes, but in another unit",
               "correct: no, it is correct", "correct: no, both agree", "correct: no. The two answers are equivalent.",
               "correct: yes?", "correct: no?", "correct: yes, probably", "correct: yes. The year is off.",
               "correct: yes, while the sign is flipped", "correct: yes\nconfidence: 90\n\nWait, so the verdict is no.",
               "correct: no - yes"],
    },
    "xbench": {
        True: ["结论: 正确", "结论：正确", "结论:正确", "**结论**：正确", "最终提取答案: 5\n解释: 一致\n结论: 正确",
               "结论：【正确】", "结论：正确。", "结论是正确", "3. 结论：正确",
               "结论: 正确，与标准答案一致", "结论:\n正确", "结论: 回答正确", "综上，结论：正确", "结论: 正确的",
               "解释: 他的结论错误\n结论: 正确", "最终结论: 正确"],
        False: ["结论: 错误", "结论：错误", "结论：不正确", "解释: 与正确答案不同\n结论: 错误", "结论：**错误**",
               "结论: 错误，标准答案是1991年", "结论: 错误（正确答案是1991）", "结论：答案不正确", "结论: '错误'",
               "因此，结论: 错误", "最终答案: 1990 解释: 不一致 结论: 错误", "解释: 乍看结论: 正确，但年份不同\n结论: 错误"],
        None: ["", "正确", "错误", "结论:", "结论：正确/错误", "结论：正确或错误", "结论: 正确\n结论: 错误", "结论：无法判断",
               "Correct", "结论：'正确'、'错误'", "结论：正确吗？错误", "结论：正确答案与回答不一致", "结论:正确性无法判断",
               "结论：正确；错误", "结论：正确。但单位错误", "不能说结论是正确的",
               "结论: 正确，但年份不同", "结论: 错误，不，应为正确", "结论：正确，与标准答案矛盾", "结论：正确，除了年份",
               "结论：错误，两者一致", "如果年份一致，结论：正确", "结论：正确\n更正：错误", "结论: 不完全正确",
               "结论: 没有错误", "原结论: 正确",
               "结论: 正确。不对，结论: 错误"],
    },
}


@pytest.mark.parametrize("family, verdict, reply", [(f, v, r) for f, by in CASES.items() for v, rs in by.items() for r in rs])
def test_verdicts(family, verdict, reply):
    assert read_verdict(family, reply) is verdict


NONSENSE = [None, 3, b"Correct", "\ud800", "\x00" * 1000, "{" * 5000, '{"correct": ' + "[" * 100_000, "(" * 5000, "[[1]]",
            "A" * 100_000, "Correct:", "The answer is correct:"]


@pytest.mark.parametrize("family", READERS)
@pytest.mark.parametrize("reply", NONSENSE)
def test_nonsense_is_no_verdict(family, reply):
    assert read_verdict(family, reply) is None


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(KitError, match="did you mean 'xbench'"):
        read_verdict("xbnch", "A")
