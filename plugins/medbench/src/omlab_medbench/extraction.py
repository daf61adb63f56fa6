"""From the text of an answer to entities, relations, events, terms and fields."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

Item = dict[str, Any]
ENTITY_TYPES = (
    "药物", "设备", "医院科室", "微生物类", "身体部位", "医疗操作", "医学检验项目", "症状", "疾病",
)  # fmt: skip
PREDICATES = frozenset(
    [
        "相关（导致）",
        "鉴别诊断",
        "遗传因素",
        "发病性别倾向",
        "相关（症状）",
        "手术治疗",
        "预防",
        "辅助检查",
        "筛查",
        "阶段",
        "临床表现",
        "风险评估因素",
        "同义词",
        "发病年龄",
        "预后生存率",
        "病史",
        "传播途径",
        "治疗后症状",
        "药物治疗",
        "辅助治疗",
        "化疗",
        "死亡率",
        "放射治疗",
        "病因",
        "组织学检查",
        "内窥镜检查",
        "多发群体",
        "并发症",
        "实验室检查",
        "就诊科室",
        "病理生理",
        "高危因素",
        "发病率",
        "多发地区",
        "病理分型",
        "影像学检查",
        "转移部位",
        "发病部位",
        "相关（转化）",
        "外侵部位",
        "预后状况",
        "发病机制",
        "多发季节",
    ]
)
_QUOTED = '["“]([^"”]*)["”]'
_RELATION = re.compile(f"关系[:：]{_QUOTED}[,，]头实体[:：]{_QUOTED}[,，]尾实体[:：]{_QUOTED}")
RECORD_FIELDS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")
LONG_RECORD_FIELDS = ("主诉", "现病史", "既往史", "个人史", "婚育史", "家族史")
#: Word -> name with its unit.
_VITAL_SIGNS = {
    "体温": "体温(℃)", "脉搏": "脉搏(次/分)", "心率": "心率(次/分)", "收缩压": "收缩压(mmHg)",
    "舒张压": "舒张压(mmHg)", "呼吸": "呼吸(次/分)",
}  # fmt: skip
_FINDINGS = {
    "上腹部深压痛": ("是否上腹部深压痛", "是", "否"),
    "腹部反跳痛": ("是否腹部反跳痛", "是", "否"),
    "上腹部肿块": ("上腹部肿块", "扪及", "未扪及"),
}
_YES = re.compile("是(?!否)|(?:^|[^不])存在|有")


def entities(text: str) -> list[Item]:
    """CMeEE: of every line that begins with a type, the pieces between commas, nothing stripped."""
    found = []
    for kind in ENTITY_TYPES:
        for line in text.split("\n"):
            if line.startswith(kind):
                rest = line.replace(f"{kind}:", "").replace(f"{kind}：", "")
                found += [{"type": kind, "entity": piece} for piece in re.split("[,，]", rest)]
    return found


def relations(text: str) -> list[Item]:
    """CMeIE: relation, head and tail in quotes, of the known predicates."""
    return [
        {"predicate": predicate, "subject": subject, "object": target}
        for line in text.split("\n")
        for predicate, subject, target in _RELATION.findall(line)
        if predicate in PREDICATES
    ]


def events(text: str) -> list[Item]:
    """CHIP-CDEE: one event a line that names its subject."""
    found = []
    for line in text.split("\n"):
        if "主体词" not in line:
            continue
        fields = dict(part.split("：", 1) for part in line.rstrip("。").split("；") if "：" in part)
        state = fields.get("发生状态", "不确定")
        found.append(
            {
                "主体词": fields.get("主体词", ""),
                "发生状态": state if state in ("不确定", "否定") else "",
                "描述词": _listed(fields.get("描述词")),
                "解剖部位": _listed(fields.get("解剖部位")),
            }
        )
    return found


def _listed(text: str | None) -> list[str]:
    return [] if text is None or text == "空" else text.split("，")


def terms(text: str, known: Collection[str]) -> list[Item]:
    """CHIP-CDN: names on the last line that are known, each once."""
    given = [part.strip() for part in text.rsplit("\n", 1)[-1].split("，")]
    return [{"entity": name, "type": "normalization"} for name in dict.fromkeys(given) if name and name in known]


def record(text: str, fields: Collection[str] = RECORD_FIELDS) -> dict[str, str]:
    """Fields of a medical record: blocks between empty lines, or lines where there is none, that begin with a field
    and a colon; later ones win."""
    found = {}
    for block in text.split("\n\n" if "\n\n" in text else "\n"):
        part = block.strip()
        for field in fields:
            if part.startswith((f"{field}:", f"{field}：")):
                found[field] = part[len(field) + 1 :]
    return found


def examination(text: str) -> list[Item]:
    """SMDoc: vital signs and findings of a physical examination."""
    found = []
    for word, name in _VITAL_SIGNS.items():
        numbers = re.findall(rf"{word}[^\d]*?(\d+(?:\.\d+)?)", text)
        found.append({"type": name, "entity": numbers[-1] if numbers else "未扪及"})
    told: dict[str, str] = {}
    for sentence in re.split("[，。|\n]", text):
        for word, (name, yes, no) in _FINDINGS.items():
            if word in sentence:
                told[name] = yes if _YES.search(sentence) else no
    order = [name for name, _, _ in _FINDINGS.values() if name in told]
    return found + [{"type": name, "entity": told[name]} for name in order]
